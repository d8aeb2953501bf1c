// Empty, so that the compiler takes functions without a body (fork.go).
