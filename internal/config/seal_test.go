package config_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/config"
)

func TestSealIsOnWhereItsSectionIsNamed(t *testing.T) {
	def := config.Default().Core.Seal
	tests := []struct {
		name, doc string
		environ   []string
		want      func(*config.Seal)
	}{
		{"nothing", "[core]\n", nil, func(s *config.Seal) { s.Named = false }},
		{"empty section", "[core.seal.tpm]\n", nil, func(s *config.Seal) { s.TPM.Enabled = true }},
		{"inline table", "core.seal = { guest_agent = {} }\n", nil, func(s *config.Seal) { s.GuestAgent.Enabled = true }},
		{"keys", "core.seal.tpm = { device = '/run/tpm.sock', pcrs = [0x7, 0, 2_3] }\n", nil, func(s *config.Seal) {
			s.TPM = config.SealTPM{Enabled: true, Device: "/run/tpm.sock", PCRs: []int{7, 0, 23}}
		}},
		{"recipients over several lines", "core.seal.tpm.pcrs = [1]\ncore.seal.escrow.recipients = [\n  'age1x', # of the safe\n  'ssh-ed25519 AAAA me',\n]\n", nil, func(s *config.Seal) {
			s.TPM.Enabled, s.TPM.PCRs = true, []int{1}
			s.Escrow = config.SealEscrow{Enabled: true, Recipients: []string{"age1x", "ssh-ed25519 AAAA me"}}
		}},
		{"environment", "", []string{
			"DSTACK_KMS_CORE_SEAL_PASSPHRASE_PROMPT=true", "DSTACK_KMS_CORE_SEAL_PASSPHRASE_WORK_FACTOR=20",
			"DSTACK_KMS_CORE_SEAL_TPM_PCRS= 7, 11 ,14", "DSTACK_KMS_CORE_SEAL_ESCROW_RECIPIENTS=age1x,age1y\nssh-rsa AAAA me\n",
		}, func(s *config.Seal) {
			s.Passphrase = config.SealPassphrase{Enabled: true, Prompt: true, WorkFactor: 20}
			s.TPM.Enabled = true
			s.Escrow = config.SealEscrow{Enabled: true, Recipients: []string{"age1x", "age1y", "ssh-rsa AAAA me"}}
		}},
		{
			"environment over the file", "core.seal.passphrase.file = '/f'\n",
			[]string{"DSTACK_KMS_CORE_SEAL_PASSPHRASE_CREDENTIAL=seal"},
			func(s *config.Seal) {
				s.Passphrase = config.SealPassphrase{Enabled: true, Credential: "seal", WorkFactor: 18}
			},
		},
		{
			"environment over the prompt", "core.seal.passphrase.prompt = true\n",
			[]string{"DSTACK_KMS_CORE_SEAL_PASSPHRASE_FILE=/f"},
			func(s *config.Seal) {
				s.Passphrase = config.SealPassphrase{Enabled: true, File: "/f", WorkFactor: 18}
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := def
			want.Named = true
			tt.want(&want)
			got := parse(t, tt.doc, tt.environ...).Core.Seal
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("Parse(%q).Core.Seal differs (-want +got):\n%s", tt.doc, diff)
			}
			if got.Configured() != want.Named {
				t.Errorf("Configured() = %v, want %v", got.Configured(), want.Named)
			}
		})
	}
}

const (
	noOpener  = "names no seal that can open: add core.seal.passphrase, core.seal.tpm or core.seal.guest_agent"
	oneSource = "core.seal.passphrase: set exactly one of file, credential and prompt = true"
	agentPath = "core.seal.guest_agent.path: must be from 1 to 256 printable ASCII characters without spaces"
	plainName = "core.seal.passphrase.credential: must be the plain name of a file in $CREDENTIALS_DIRECTORY"
)

func TestSealProblems(t *testing.T) {
	const at = "kms.toml:1:1: "
	tests := []struct {
		name, doc string
		want      []string
	}{
		{"section alone", "core.seal = {}", []string{at + "core.seal: " + noOpener}},
		{"escrow alone", "core.seal.escrow.recipients = ['age1x']", []string{"core.seal: " + noOpener}},
		{"no source", "core.seal.passphrase = {}", []string{at + oneSource}},
		{"prompt that is off", "core.seal.passphrase.prompt = false", []string{oneSource}},
		{"two sources", "core.seal.passphrase = { file = '/f', prompt = true }", []string{at + oneSource}},
		{"credential with a path", "core.seal.passphrase.credential = 'a/b'", []string{at + plainName}},
		{"credential above", "core.seal.passphrase.credential = '..'", []string{at + plainName}},
		{"work factor too small", "core.seal.passphrase = { prompt = true, work_factor = 9 }", []string{"kms.toml:1:41: core.seal.passphrase.work_factor: must be from 10 to 22"}},
		{"work factor too great", "core.seal.passphrase = { prompt = true, work_factor = 23 }", []string{"kms.toml:1:41: core.seal.passphrase.work_factor: must be from 10 to 22"}},
		{"relative device", "core.seal.tpm.device = 'tpmrm0'", []string{at + "core.seal.tpm.device: must be an absolute path"}},
		{"no PCR", "core.seal.tpm.pcrs = []", []string{at + "core.seal.tpm.pcrs: name at least one PCR"}},
		{"no such PCR", "core.seal.tpm.pcrs = [24]", []string{at + "core.seal.tpm.pcrs: must be from 0 to 23 each"}},
		{"negative PCR", "core.seal.tpm.pcrs = [-1]", []string{at + "core.seal.tpm.pcrs: must be from 0 to 23 each"}},
		{"one PCR twice", "core.seal.tpm.pcrs = [7, 11, 7]", []string{at + "core.seal.tpm.pcrs: names PCR 7 twice"}},
		{"PCR beyond all integers", "core.seal.tpm.pcrs = [4294967303]", []string{at + "core.seal.tpm.pcrs: expected integers"}},
		{"PCR in quotes", "core.seal.tpm.pcrs = [7, '11']", []string{at + "core.seal.tpm.pcrs: expected an array of integers, found a string in it"}},
		{"PCR alone", "core.seal.tpm.pcrs = 7", []string{at + "core.seal.tpm.pcrs: expected an array of integers, found an integer"}},
		{"agent without path", "core.seal.guest_agent.path = ''", []string{at + agentPath}},
		{"agent with a space", "core.seal.guest_agent.path = 'a b'", []string{at + agentPath}},
		{"agent with a line feed", `core.seal.guest_agent.path = "a\nb"`, []string{at + agentPath}},
		{"agent with a long path", "core.seal.guest_agent.path = '" + strings.Repeat("a", 257) + "'", []string{at + agentPath}},
		{"escrow for nobody", "core.seal = { tpm = {}, escrow = {} }", []string{"core.seal.escrow.recipients: name at least one recipient, or leave the section out"}},
		{"empty recipient", "core.seal = { tpm = {}, escrow.recipients = ['age1x', ' '] }", []string{"kms.toml:1:25: core.seal.escrow.recipients: recipient 2 must be one line that is not empty"}},
		{"recipient of two lines", `core.seal = { tpm = {}, escrow.recipients = ["a\nb"] }`, []string{"kms.toml:1:25: core.seal.escrow.recipients: recipient 1 must be one line that is not empty"}},
		{"recipient that is no string", "core.seal.escrow.recipients = [['age1x']]", []string{at + "core.seal.escrow.recipients: expected an array of strings, found an array in it"}},
		{"all at once", "core.seal = { passphrase = { work_factor = 1 }, tpm = { device = '', pcrs = [] }, escrow = {} }", []string{
			"kms.toml:1:15: " + oneSource,
			"kms.toml:1:30: core.seal.passphrase.work_factor: must be from 10 to 22",
			"kms.toml:1:57: core.seal.tpm.device: must be an absolute path",
			"kms.toml:1:70: core.seal.tpm.pcrs: name at least one PCR",
			"core.seal.escrow.recipients: name at least one recipient, or leave the section out",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, problems(t, tt.doc)); diff != "" {
				t.Errorf("Parse(%q) problems differ (-want +got):\n%s", tt.doc, diff)
			}
		})
	}
}

func TestSealProblemsOfTheEnvironment(t *testing.T) {
	tests := []struct{ name, entry, want string }{
		{"not integers", "DSTACK_KMS_CORE_SEAL_TPM_PCRS=7,x", "DSTACK_KMS_CORE_SEAL_TPM_PCRS: core.seal.tpm.pcrs: expected integers"},
		{"brackets", "DSTACK_KMS_CORE_SEAL_TPM_PCRS=[7]", "DSTACK_KMS_CORE_SEAL_TPM_PCRS: core.seal.tpm.pcrs: expected integers"},
		{"empty", "DSTACK_KMS_CORE_SEAL_TPM_PCRS=", "DSTACK_KMS_CORE_SEAL_TPM_PCRS: core.seal.tpm.pcrs: name at least one PCR"},
		{"commas alone", "DSTACK_KMS_CORE_SEAL_TPM_PCRS=,", "DSTACK_KMS_CORE_SEAL_TPM_PCRS: core.seal.tpm.pcrs: name at least one PCR"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff([]string{tt.want}, problems(t, "", tt.entry)); diff != "" {
				t.Errorf("Parse(%s) problems differ (-want +got):\n%s", tt.entry, diff)
			}
		})
	}
}

func TestRecipientsAreNotQuoted(t *testing.T) {
	const canary = "AGE-SECRET-KEY-1CANARY"
	for _, doc := range []string{
		"core.seal = { tpm = {}, escrow.recipients = [\"" + canary + "\\n\"] }",
		"core.seal = { tpm = {}, escrow.recipients = ['" + canary + "', 1] }",
		"core.seal = { tpm = {}, escrow.recipients = '" + canary + "' }",
		"core.seal.passphrase = { credential = '" + canary + "/' }",
	} {
		if got := strings.Join(problems(t, doc), "\n"); strings.Contains(got, "CANARY") {
			t.Errorf("problems of %q hold the value: %s", doc, got)
		}
	}
}

func TestSealsThatAreFine(t *testing.T) {
	tests := []struct {
		doc                        string
		opens, platformAlone, weak bool
	}{
		{"", false, false, false},
		{"core.seal.passphrase.prompt = true", true, false, false},
		{"core.seal.passphrase = { credential = 'kms.seal', work_factor = 14 }", true, false, true},
		{"core.seal.passphrase = { file = '/f', work_factor = 15 }", true, false, false},
		{"core.seal.passphrase = { file = '/f', work_factor = 22 }", true, false, false},
		{"core.seal.passphrase.work_factor = 14\ncore.seal.passphrase.file = 'f'", true, false, true},
		{"core.seal.tpm.pcrs = [0, 23]", true, true, false},
		{"core.seal.guest_agent = {}", true, true, false},
		{"core.seal = { tpm = {}, guest_agent = {}, passphrase.prompt = true }", true, false, false},
		{"core.seal = { tpm = {}, escrow.recipients = ['age1x'] }", true, false, false},
	}
	for _, tt := range tests {
		c := parse(t, tt.doc)
		s := c.Core.Seal
		if s.Opens() != tt.opens || s.PlatformAlone() != tt.platformAlone || s.Passphrase.Weak() != tt.weak {
			t.Errorf("%q: Opens, PlatformAlone, Weak = %v, %v, %v, want %v, %v, %v", tt.doc,
				s.Opens(), s.PlatformAlone(), s.Passphrase.Weak(), tt.opens, tt.platformAlone, tt.weak)
		}
		if got := len(c.InsecureSettings()) == 1; got == s.Configured() {
			t.Errorf("%q: InsecureSettings() = %q, want %s exactly where no seal is", tt.doc, c.InsecureSettings(), config.UnsealedKeys)
		}
	}
}
