package e2e

import (
	"fmt"
	"strings"
	"testing"

	"teekms/internal/keys/seal/tpm/swtpmtest"
)

// measure is what the platform of these tests measures when it starts.
func measure(tpm *swtpmtest.TPM, kernel string) {
	tpm.Measure(7, "secure boot policy")
	tpm.Measure(11, kernel)
	tpm.Measure(14, "shim")
}

// wantReasons wants one line that names a file and says for each seal why it does
// not open.
func wantReasons(t testing.TB, last string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(last, w) {
			t.Errorf("the refusal is\n%s\nwant %q in it", last, w)
		}
	}
}

// TestSealedToATPM starts a KMS again after each thing that can happen to its
// platform.
func TestSealedToATPM(t *testing.T) {
	t.Parallel()
	s := newSeals(t)
	k := newKMS(t, "", "")
	tpm := s.withTPM(t)
	measure(s.tpm, "kernel 1")
	k.configure(t, tpm, s.escrow(t), devAuthority)
	k.fill(t, exampleDomain)
	p, _ := k.serve(t, exampleDomain)
	keys := k.appKeys(t, exampleDomain, k)
	p.terminate(t)

	// A power cycle, with the same measurements.
	s.tpm.Restart()
	wantReasons(t, k.refuses(t, "dstack-kms"), "root-ca.key", "tpm: ", "PCR")
	measure(s.tpm, "kernel 1")
	p, _ = k.serve(t, exampleDomain)
	if got := k.appKeys(t, exampleDomain, k); fmt.Sprint(got) != fmt.Sprint(keys) {
		t.Error("after a restart of the platform the KMS derives other keys")
	}
	// What is measured while it runs is no concern of the running KMS.
	s.tpm.Measure(14, "something else")
	k.releases(t, 200, `"disk_crypt_key"`)
	p.terminate(t)
	for _, name := range []string{"dstack-kms", "dstack-onboard"} {
		wantReasons(t, k.refuses(t, name, "DSTACK_KMS_CORE_ONBOARD_AUTO_BOOTSTRAP_DOMAIN="+exampleDomain), "root-ca.key", "tpm: ", "PCR 14 of SHA-256")
	}

	// A new kernel: escrow is the way in, and the new measurements from then on.
	s.tpm.Restart()
	measure(s.tpm, "kernel 2")
	wantReasons(t, k.refuses(t, "dstack-kms"), "root-ca.key", "tpm: ", "PCR 11 of SHA-256", "escrow: ")
	before := tree(t, k.Certs)
	k.kmsctlSeal(t, 1, "rotate")
	if after := tree(t, k.Certs); fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("a rotation that was refused changed the directory:\n%v\n%v", before, after)
	}
	k.kmsctlSeal(t, 0, "rotate", "--identity", s.identity)
	s.tpm.Restart()
	measure(s.tpm, "kernel 2")
	p, _ = k.serve(t, exampleDomain)
	if got := k.appKeys(t, exampleDomain, k); fmt.Sprint(got) != fmt.Sprint(keys) {
		t.Error("with the new kernel the KMS derives other keys")
	}
	p.terminate(t)
	s.tpm.Restart()
	measure(s.tpm, "kernel 1")
	wantReasons(t, k.refuses(t, "dstack-kms"), "tpm: ")

	t.Run("another TPM", func(t *testing.T) {
		other := swtpmtest.Start(t)
		measure(other, "kernel 2")
		k.configure(t, tpmAt(other.Socket()), devAuthority)
		wantReasons(t, k.refuses(t, "dstack-kms"), "root-ca.key", "tpm: ")
	})
	t.Run("a TPM that is gone", func(t *testing.T) {
		k.configure(t, tpmAt(s.dir+"/nothing.sock"), devAuthority)
		wantReasons(t, k.refuses(t, "dstack-kms"), "root-ca.key", "tpm: ", "nothing.sock")
	})
	t.Run("a passphrase that the files do not know", func(t *testing.T) {
		k.configure(t, s.passphrase(t), devAuthority)
		wantReasons(t, k.refuses(t, "dstack-kms"), "root-ca.key", "passphrase: ", "tpm: ", "core.seal")
	})
}

// TestPassphraseOpensWhereTheTPMDoesNot has both, and says why the first failed.
func TestPassphraseOpensWhereTheTPMDoesNot(t *testing.T) {
	t.Parallel()
	s := newSeals(t)
	k := newKMS(t, "", "")
	k.configure(t, s.withTPM(t), s.passphrase(t), devAuthority)
	k.fill(t, exampleDomain)
	p, _ := k.serve(t, exampleDomain)
	keys := k.appKeys(t, exampleDomain, k)
	p.terminate(t)
	s.tpm.Measure(11, "a new kernel")
	p, _ = k.serve(t, exampleDomain)
	wantReasons(t, p.stderr.String(), "WARN a seal does not open the key directory any more", "PCR 11 of SHA-256 is not what it was",
		`"by": "passphrase"`)
	if got := k.appKeys(t, exampleDomain, k); fmt.Sprint(got) != fmt.Sprint(keys) {
		t.Error("opened by the passphrase the KMS derives other keys")
	}
	k.kmsctlSeal(t, 0, "rotate") // also while it serves
	k.releases(t, 200, `"disk_crypt_key"`)
	p.terminate(t)
	k.configure(t, s.withTPM(t), devAuthority)
	k.serve(t, exampleDomain)
	if got := k.appKeys(t, exampleDomain, k); fmt.Sprint(got) != fmt.Sprint(keys) {
		t.Error("opened by the TPM again the KMS derives other keys")
	}
}

// noAgent is the text by which operators know that there is no agent.
const noAgent = "tappd socket not found"

// TestSealedToAGuestAgent opens for the application that it was sealed for.
func TestSealedToAGuestAgent(t *testing.T) {
	t.Parallel()
	s := newSeals(t)
	section, env := s.withAgent(t)
	k := newKMS(t, "", "")
	k.configure(t, section, devAuthority)
	k.fill(t, exampleDomain, env)
	k.checkSealed(t, "teekms-file", "teekms-guest-agent")
	p, _ := k.serve(t, exampleDomain, env)
	p.terminate(t)

	same := newSealAgent(t, t.TempDir(), 1) // another machine, the same application
	p, _ = k.serve(t, exampleDomain, agentEnv(same.socket))
	p.terminate(t)
	other := newSealAgent(t, t.TempDir(), 2)
	wantReasons(t, k.refuses(t, "dstack-kms", agentEnv(other.socket)), "root-ca.key", "guest-agent: ", "does not fit")
	wantReasons(t, k.refuses(t, "dstack-onboard", agentEnv(s.dir+"/nobody.sock")), "root-ca.key", "guest-agent: ", noAgent)

	// Where there is no agent, nothing is bootstrapped.
	empty := newKMS(t, `auto_bootstrap_domain = "kms.example.com"`, section)
	for _, name := range []string{"dstack-kms", "dstack-onboard"} {
		last := empty.refuses(t, name, agentEnv(s.dir+"/nobody.sock"))
		wantReasons(t, last, "guest-agent: ", noAgent)
	}
}

// TestPlatformAloneIsSaidLoudly warns where the day on which the platform changes
// is the end of the keys.
func TestPlatformAloneIsSaidLoudly(t *testing.T) {
	t.Parallel()
	s := newSeals(t)
	tpm, agentSection := s.withTPM(t), ""
	agentSection, agent := s.withAgent(t)
	tests := []struct {
		name     string
		sections []string
		loud     bool
	}{
		{"a TPM alone", []string{tpm}, true},
		{"TPM and guest agent", []string{tpm, agentSection}, true},
		{"a TPM and escrow", []string{tpm, s.escrow(t)}, false},
		{"a TPM and a passphrase", []string{tpm, s.passphrase(t)}, false},
		{"nothing", nil, false},
	}
	for _, tt := range tests {
		k := newKMS(t, "", "")
		k.configure(t, append(tt.sections, devAuthority)...)
		code, _, stderr := runCmd(t, command(t, []string{agent, "DSTACK_KMS_CORE_ONBOARD_AUTO_BOOTSTRAP_DOMAIN=" + exampleDomain},
			"dstack-onboard", "--config", k.Config))
		if code != 0 {
			t.Errorf("%s: exit status %d\n%s", tt.name, code, stderr)
		}
		p, _ := k.serve(t, exampleDomain, agent)
		for _, log := range []string{stderr, p.stderr.String()} {
			if got := strings.Contains(log, platformAlone); got != tt.loud {
				t.Errorf("%s: it is said %t that only the platform opens the keys, want %t\n%s", tt.name, got, tt.loud, log)
			}
		}
		p.terminate(t)
	}
}

// platformAlone is a part of the warning.
const platformAlone = "WARN NOTHING BUT THIS PLATFORM OPENS THE KEY DIRECTORY: "
