package pkcs12

// Work is the sum of the iteration counts that a file shows without a password.
func Work(data []byte) int {
	w := &walker{}
	_ = w.check(data) // the count up to where it was refused
	return w.work
}

// LegacyKey derives a key as files do that are older than PBES2.
func LegacyKey(salt, password []byte, iterations int, purpose byte, size int) []byte {
	return legacyKey(salt, password, iterations, purpose, size)
}
