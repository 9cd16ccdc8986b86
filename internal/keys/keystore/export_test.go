package keystore

// MarshalInfo gives tests the other half of [ParseInfo].
func MarshalInfo(i *Info) ([]byte, error) { return i.marshal() }

// MarkedFiles returns the names in a marker, false where it is none.
func MarkedFiles(text []byte) ([]string, bool) {
	m, ok := parseMarker(text)
	var names []string
	for _, l := range m.lines {
		names = append(names, l.name)
	}
	return names, ok
}

// MarshalMarker writes what MarkedFiles reads.
func MarshalMarker(files map[string][]byte) []byte { return marshalMarker(files) }
