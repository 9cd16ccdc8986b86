package pkcs12

// Work is the sum of the iteration counts that a file shows without a password.
func Work(data []byte) int {
	w := &walker{}
	_ = w.check(data) // the count up to where it was refused
	return w.work
}
