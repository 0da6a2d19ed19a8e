"""The policy gateway and the playground: `rheostat serve`, dials over HTTP under a policy that no caller turns down."""
