package config

import "strings"

// unknown words an unknown key or section, with the nearest known one.
func (s *schema) unknown(what, path string) string {
	text := "unknown " + what + " " + path
	if near := s.nearest(what == "section", path); near != "" {
		text += "; did you mean " + near + "?"
	}
	return text
}

// nearest returns the known path that is the fewest edits away, or the one that
// has the same last part, or nothing when none is near.
func (s *schema) nearest(table bool, path string) string {
	if len(path) > maxNearest {
		return ""
	}
	best, distance := "", len(path)/3+2
	sameLeaf := ""
	for _, f := range s.order {
		if f.table != table {
			continue
		}
		if d := editDistance(path, f.path); d < distance {
			best, distance = f.path, d
		}
		if sameLeaf == "" && leaf(f.path) == leaf(path) {
			sameLeaf = f.path
		}
	}
	if best == "" {
		return sameLeaf
	}
	return best
}

// maxNearest bounds the paths for which a neighbor is looked for, in bytes.
const maxNearest = 200

func leaf(path string) string { return path[strings.LastIndexByte(path, '.')+1:] }

// editDistance is the number of insertions, deletions, replacements and swaps of
// neighbors that make b of a (optimal string alignment), over bytes.
func editDistance(a, b string) int {
	before, previous, current := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range previous {
		previous[j] = j
	}
	for i := 1; i <= len(a); i++ {
		current[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			current[j] = min(previous[j]+1, current[j-1]+1, previous[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				current[j] = min(current[j], before[j-2]+1)
			}
		}
		before, previous, current = previous, current, before
	}
	return previous[len(b)]
}
