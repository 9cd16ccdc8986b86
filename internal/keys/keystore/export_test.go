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

// PlainFiles returns the private files of a bundle as they would be without
// seals.
func PlainFiles(b *Bundle) map[string][]byte {
	all, err := b.files()
	if err != nil {
		panic(err) // the bundle was made with valid keys
	}
	return all.private()
}
