package durabletest

import (
	"fmt"
	"math/rand/v2"
)

// Outcome is what a crash does to what was not synced.
type Outcome struct {
	// Name says which it is.
	Name string

	// halves says how many halves of the i-th of n pending directory changes
	// survive: 0 none, 1 a rename's new name beside the old, 2 all.
	halves func(i, n int) int
	// data says what is found of contents that were not synced.
	data func(stable, cached []byte) []byte
}

// mode says whether a mode that was not synced survives: where the contents
// would.
func (o Outcome) mode() bool { return len(o.data(nil, []byte{1})) > 0 }

func lost(stable, _ []byte) []byte { return stable }

func whole(_, cached []byte) []byte { return cached }

func torn(_, cached []byte) []byte { return cached[:len(cached)/2] }

func zeroed(_, cached []byte) []byte { return make([]byte, len(cached)) }

func all(int, int) int { return 2 }

// Kept is the outcome in which everything survives: the process died, the
// machine did not.
func Kept() Outcome { return Outcome{Name: "all kept", halves: all, data: whole} }

// Lost is the outcome in which nothing survives that was not synced.
func Lost() Outcome {
	return Outcome{Name: "all lost", halves: func(int, int) int { return 0 }, data: lost}
}

// Outcomes returns the outcomes to try at each crash: the two extremes, torn and
// zeroed contents, renames that leave both names, only the first, only the last
// and all but the last directory change, and as many random ones.
func Outcomes(random int) []Outcome {
	pick := func(keep func(i, n int) bool) func(i, n int) int {
		return func(i, n int) int {
			if keep(i, n) {
				return 2
			}
			return 0
		}
	}
	list := []Outcome{
		Kept(),
		Lost(),
		{"contents lost", all, lost},
		{"contents torn", all, torn},
		{"contents zeroed", all, zeroed},
		{"both names", func(int, int) int { return 1 }, whole},
		{"first change only", pick(func(i, _ int) bool { return i == 0 }), torn},
		{"last change only", pick(func(i, n int) bool { return i == n-1 }), whole},
		{"all but the last change", pick(func(i, n int) bool { return i < n-1 }), whole},
		{"all but the first change", pick(func(i, _ int) bool { return i > 0 }), zeroed},
	}
	for seed := range random {
		list = append(list, Random(uint64(seed)))
	}
	return list
}

// Random decides about each change and each file by chance, the same for the
// same seed.
func Random(seed uint64) Outcome {
	r := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // repeatable on purpose
	forms := []func(_, _ []byte) []byte{lost, whole, torn, zeroed}
	return Outcome{
		Name:   fmt.Sprintf("random %d", seed),
		halves: func(int, int) int { return r.IntN(3) },
		data:   func(stable, cached []byte) []byte { return forms[r.IntN(len(forms))](stable, cached) },
	}
}
