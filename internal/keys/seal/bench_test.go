package seal_test

import (
	"fmt"
	"testing"

	"golang.org/x/crypto/scrypt"

	"filippo.io/age"

	"teekms/internal/keys/seal"
)

// benchSet is a set of one seal that opens, and an escrow.
func benchSet(b *testing.B, one seal.Seal) *seal.Set {
	b.Helper()
	_, vault := holder(b)
	return newSet(b, one, vault)
}

// words is a passphrase of that work factor.
func words(factor int) seal.Seal {
	return seal.New(seal.KindPassphrase, source((&said{text: "correct horse"}).read, nil, factor))
}

// BenchmarkOpen opens four files by each kind of seal; the TPM and the agent
// answer at once, so what is left is the cost of the format. The floor of a
// passphrase is in BenchmarkFloor.
func BenchmarkOpen(b *testing.B) {
	for _, bb := range []struct {
		name string
		one  seal.Seal
	}{
		{"tpm", tpm()},
		{"guest-agent", guestAgent("app")},
		{"passphrase-10", words(10)},
		{"passphrase-18", words(18)},
	} {
		b.Run(bb.name, func(b *testing.B) {
			set := benchSet(b, bb.one)
			files := sealed(b, set)
			for b.Loop() {
				if _, err := set.Open(b.Context(), files); err != nil {
					b.Fatalf("Open() = %v, want the files", err)
				}
			}
		})
	}
	b.Run("identity", func(b *testing.B) {
		id, vault := holder(b)
		files := sealed(b, newSet(b, tpm(), vault))
		set := withIdentities(b, []age.Identity{id}, tpm())
		for b.Loop() {
			if _, err := set.Open(b.Context(), files); err != nil {
				b.Fatalf("Open() = %v, want the files", err)
			}
		}
	})
}

// BenchmarkFloor is what a passphrase costs by itself: one scrypt.
func BenchmarkFloor(b *testing.B) {
	for _, factor := range []int{10, 18} {
		b.Run(fmt.Sprintf("scrypt-%d", factor), func(b *testing.B) {
			for b.Loop() {
				if _, err := scrypt.Key([]byte("correct horse"), []byte(salt), 1<<factor, 8, 1, 32); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSeal seals four files, and opens them again as Seal does.
func BenchmarkSeal(b *testing.B) {
	set := benchSet(b, tpm())
	for b.Loop() {
		sealed(b, set)
	}
}
