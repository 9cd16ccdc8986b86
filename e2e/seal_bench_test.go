package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"golang.org/x/crypto/scrypt"

	"teekms/internal/attest/guestagent"
	"teekms/internal/keys"
	"teekms/internal/keys/seal"
	"teekms/internal/keys/seal/tpm"
)

// benchmarkSource is a source of one key, asked as a KMS asks it at its start.
type benchmarkSource struct {
	name string
	kind seal.Kind
	make func(testing.TB) seal.KeySource
}

func benchmarkSources(s *seals) []benchmarkSource {
	return []benchmarkSource{
		{"passphrase", seal.KindPassphrase, func(testing.TB) seal.KeySource {
			return seal.NewPassphrase(seal.PassphraseConfig{Read: func(context.Context) (keys.Secret, error) {
				return keys.NewSecret([]byte(passphraseCanary)), nil
			}})
		}},
		{"tpm", seal.KindTPM, func(t testing.TB) seal.KeySource {
			s.withTPM(t)
			source, err := tpm.New(tpm.Config{Device: s.tpm.Socket(), PCRs: []int{7, 11, 14}})
			if err != nil {
				t.Fatal(err)
			}
			return source
		}},
		{"guest-agent", seal.KindGuestAgent, func(t testing.TB) seal.KeySource {
			s.withAgent(t)
			agent, err := guestagent.New(guestagent.Config{Address: "unix:" + s.agent.socket})
			if err != nil {
				t.Fatal(err)
			}
			return seal.NewGuestAgent(agent, "teekms/key-directory")
		}},
	}
}

// BenchmarkSealOpen opens the four private files with each seal, and with an
// identity of escrow; scrypt alone is the floor of the passphrase.
func BenchmarkSealOpen(b *testing.B) {
	files := map[string]keys.Secret{}
	for _, name := range privateFiles {
		secret := make([]byte, 241)
		for i := range secret {
			secret[i] = byte(rand.Uint32())
		}
		files[name] = keys.NewSecret(secret)
	}
	b.Run("scrypt", func(b *testing.B) {
		for b.Loop() {
			bareScrypt(b)
		}
	})
	open := func(b *testing.B, sealer, opener seal.Config) {
		to, err := seal.NewSet(sealer)
		if err != nil {
			b.Fatal(err)
		}
		sealed, err := to.Seal(b.Context(), files)
		if err != nil {
			b.Fatal(err)
		}
		from, err := seal.NewSet(opener)
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if _, err := from.Open(b.Context(), sealed); err != nil {
				b.Fatal(err)
			}
		}
	}
	s := newSeals(b)
	s.withTPM(b) // for longer than one of the benchmarks
	s.withAgent(b)
	for _, source := range benchmarkSources(s) {
		b.Run(source.name, func(b *testing.B) {
			cfg := seal.Config{Seals: []seal.Seal{seal.New(source.kind, source.make(b))}}
			open(b, cfg, cfg)
		})
	}
	b.Run("identity", func(b *testing.B) {
		identity, err := age.GenerateX25519Identity()
		if err != nil {
			b.Fatal(err)
		}
		escrow, err := seal.NewEscrow([]string{identity.Recipient().String()})
		if err != nil {
			b.Fatal(err)
		}
		cfg := seal.Config{Seals: []seal.Seal{seal.New(seal.KindTPM, benchmarkSources(s)[1].make(b)), escrow}}
		with := cfg
		with.Identities = []age.Identity{identity}
		open(b, cfg, with)
	})
}

// bareScrypt is what a passphrase costs at the default work factor, whatever is
// done with it.
func bareScrypt(t testing.TB) {
	if _, err := scrypt.Key([]byte(passphraseCanary), []byte("salt"), 1<<18, 8, 1, 32); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkSealedStart starts dstack-kms on plain and on sealed directories, in
// turns within one run: the time until /ready answers, the medians, and what the
// idle process then holds. scrypt-ms is scrypt alone in the same turns.
func BenchmarkSealedStart(b *testing.B) {
	s := newSeals(b)
	agentSection, agent := s.withAgent(b)
	passphrase := strings.ReplaceAll(s.passphrase(b), "work_factor = 10\n", "")
	kinds := []struct{ name, section string }{
		{"plain", ""}, {"tpm", s.withTPM(b)}, {"guest-agent", agentSection}, {"passphrase", passphrase},
	}
	dirs := make([]*kmsDir, len(kinds))
	for i, kind := range kinds {
		dirs[i] = newKMS(b, "", kind.section)
		dirs[i].fill(b, exampleDomain, agent)
	}
	took, rss := map[string][]time.Duration{}, map[string]float64{}
	for b.Loop() {
		for range 7 {
			for i, kind := range kinds {
				begin := time.Now()
				p := startCmd(b, command(b, []string{agent}, "dstack-kms", "--config", dirs[i].Config))
				waitReady(b, p, pinned(b, dirs[i]), dirs[i].URL("https")+"/ready")
				took[kind.name] = append(took[kind.name], time.Since(begin))
				time.Sleep(300 * time.Millisecond) // idle
				rss[kind.name] = max(rss[kind.name], residentMiB(b, p.Process.Pid))
				if code := p.terminate(b); code != 0 {
					b.Fatalf("exit status %d", code)
				}
			}
			took["scrypt"] = append(took["scrypt"], timed(func() { bareScrypt(b) }))
		}
	}
	for name, all := range took {
		b.ReportMetric(micros(median(all))/1e3, fmt.Sprintf("%s-ms", name))
	}
	for name, mib := range rss {
		b.ReportMetric(mib, fmt.Sprintf("%s-idle-MiB", name))
	}
}
