package tpm

// RewriteArgs reads args and writes what was read.
func RewriteArgs(args []string) ([]string, error) {
	o, err := parseArgs(args)
	if err != nil {
		return nil, err
	}
	return o.args(), nil
}
