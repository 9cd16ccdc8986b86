package config

// SchemaKeys returns the paths of all keys, and of all sections, in the order of
// their declarations.
func SchemaKeys() (keys, sections []string) {
	for _, f := range newSchema(Default()).order {
		if f.table {
			sections = append(sections, f.path)
		} else {
			keys = append(keys, f.path)
		}
	}
	return keys, sections
}

// HasEffect tells whether a key does something in this version.
func HasEffect(path string) bool { return !newSchema(Default()).idle(path) }

// EnvName returns the environment variable that sets a key.
func EnvName(path string) string { return envName(path) }

// EditDistance is editDistance.
func EditDistance(a, b string) int { return editDistance(a, b) }
