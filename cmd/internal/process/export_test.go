package process

import "io"

// CleanMappings is cleanMappings with pairs of addresses.
func CleanMappings(smaps io.Reader) ([][2]uintptr, error) {
	clean, err := cleanMappings(smaps)
	var pairs [][2]uintptr
	for _, m := range clean {
		pairs = append(pairs, [2]uintptr{m.start, m.end})
	}
	return pairs, err
}
