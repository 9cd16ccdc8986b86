package keystore

// ParseInfo and MarshalInfo give tests the codec of bootstrap-info.json.
func ParseInfo(text []byte) (*Info, error) { return parseInfo(text) }

// MarshalInfo writes what ParseInfo reads.
func MarshalInfo(i *Info) ([]byte, error) { return i.marshal() }

// MarkedFiles returns the names in a marker, false where it is none.
func MarkedFiles(text []byte) ([]string, bool) {
	lines, ok := parseMarker(text)
	var names []string
	for _, l := range lines {
		names = append(names, l.name)
	}
	return names, ok
}

// MarshalMarker writes what MarkedFiles reads.
func MarshalMarker(files map[string][]byte) []byte { return marshalMarker(files) }
