package demo

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"filippo.io/age"

	"teekms/internal/keys/seal"
	"teekms/internal/keys/seal/tpm/swtpm"
)

// The act about seals: the keys of the first KMS are sealed from their birth, to
// a passphrase, to a software TPM where there is one, and to an escrow.
const (
	passphraseFile = "passphrase"
	escrowFile     = "escrow.txt" // its secret key; elsewhere it is in somebody else's safe
	tpmDir         = "tpm"
	escrowCopy     = "escrow-copy"

	// The first KMS's configuration again, with one seal less.
	withoutPassphrase = "kms-without-passphrase.toml"
	wrongPassphrase   = "kms-wrong-passphrase.toml" //nolint:gosec // a file name
	// The second KMS's configuration, with a seal.
	sealedSecond = "kms-2-sealed.toml"
)

// measuredPCR is the register that the demonstration changes, as another kernel
// would.
const measuredPCR = 11

// NoTPM is the line that says what is not shown.
const NoTPM = "no swtpm in PATH: the passphrase and the escrow alone are shown (apt-get install swtpm)"

// sealing is what the act knows.
type sealing struct {
	tpm      *swtpm.TPM // nil where there is no swtpm
	identity *age.X25519Identity
}

// makeSeals makes what the keys will be sealed to.
func (d *demo) makeSeals(context.Context) (_ string, err error) {
	if err := d.makeDir(); err != nil {
		return "", err
	}
	if d.seals.identity, err = age.GenerateX25519Identity(); err != nil {
		return "", fmt.Errorf("making the key of the escrow: %w", err)
	}
	recipient := d.seals.identity.Recipient().String()
	for name, text := range map[string]string{
		passphraseFile: rand.Text() + "\n", passphraseFile + ".wrong": rand.Text() + "\n",
		escrowFile: fmt.Sprintf("# public key: %s\n%s\n", recipient, d.seals.identity),
	} {
		if err := os.WriteFile(d.path(name), []byte(text), 0o600); err != nil {
			return "", fmt.Errorf("writing %s: %w", name, err)
		}
	}
	if !swtpm.Available() {
		return "a passphrase, an escrow " + recipient[:12] + "…; " + NoTPM, nil
	}
	if err := os.Mkdir(d.path(tpmDir), 0o700); err != nil {
		return "", fmt.Errorf("making the TPM: %w", err)
	}
	if d.seals.tpm, err = swtpm.Start(d.path(tpmDir)); err != nil {
		return "", err
	}
	return "a passphrase, an escrow " + recipient[:12] + "…, a TPM in software", nil
}

const (
	//nolint:gosec // it names a file that holds one
	passphraseText = `
# The default work factor, 18, takes a second each time.
[core.seal.passphrase]
file = %s
work_factor = 15
`
	tpmText = `
[core.seal.tpm]
device = %s
pcrs = [7, 11, 14]
`
	escrowText = `
[core.seal.escrow]
recipients = [%s]
`
)

// sealText is the part of a configuration that seals, to a passphrase in a file
// unless that is empty, to the TPM where there is one, and to the escrow.
func (d *demo) sealText(passphrase string) string {
	if d.seals == nil {
		return ""
	}
	text := ""
	if passphrase != "" {
		text += fmt.Sprintf(passphraseText, quoted(d.path(passphrase)))
	}
	if d.seals.tpm != nil {
		text += fmt.Sprintf(tpmText, quoted(d.seals.tpm.Socket()))
	}
	return text + fmt.Sprintf(escrowText, quoted(d.seals.identity.Recipient().String()))
}

// sealAct are the steps of the act; those about a TPM only where there is one.
func (d *demo) sealAct() []step {
	if d.seals == nil {
		return nil
	}
	first := []step{
		{"look at the files", (*demo).lookAtFiles},
		{"seal the second KMS", (*demo).sealSecond},
		{"restart dstack-kms", (*demo).restart},
	}
	without := []step{
		{"try a wrong passphrase", (*demo).tryWrongPassphrase},
		{"rotate the seals", (*demo).rotate},
	}
	with := []step{
		{"measure another kernel", (*demo).measure},
		{"try the TPM alone", (*demo).tryTPMAlone},
		{"try TPM and passphrase", (*demo).startWithBoth},
		{"rotate the seals", (*demo).rotate},
		{"try the TPM alone again", (*demo).startTPMAlone},
	}
	last := []step{
		{"open a copy by escrow", (*demo).openCopy},
		{"ask for the seals", (*demo).askForSeals},
	}
	if swtpm.Available() {
		return slices.Concat(first, with, last)
	}
	return slices.Concat(first, without, last)
}

// privateFiles are those that are sealed.
func privateFiles() []string {
	return []string{"root-ca.key", "root-k256.key", "rpc.key", "tmp-ca.key"}
}

// lookAtFiles sees that the private files of the first KMS are age files, and the
// others as ever.
func (d *demo) lookAtFiles(context.Context) (string, error) {
	detail, err := d.sealed(certsDir)
	if err != nil {
		return "", err
	}
	entries, err := os.ReadDir(d.path(certsDir))
	if err != nil {
		return "", fmt.Errorf("looking into the key directory: %w", err)
	}
	if len(entries) != 8 {
		return "", fmt.Errorf("the key directory has %d entries, want 8", len(entries))
	}
	return detail + "; the same eight names as ever", nil
}

// sealed tells to what the private files of a key directory are sealed.
func (d *demo) sealed(dir string) (string, error) {
	var kinds []string
	for _, name := range privateFiles() {
		data, err := os.ReadFile(d.path(dir, name))
		if err != nil {
			return "", fmt.Errorf("looking at the key directory: %w", err)
		}
		if !seal.Sealed(data) || bytes.Contains(data, []byte("PRIVATE KEY")) {
			return "", fmt.Errorf("%s is not sealed", name)
		}
		header, err := seal.Inspect(name, data)
		if err != nil {
			return "", err
		}
		kinds = nil
		for _, s := range header.Seals {
			kinds = append(kinds, string(s.Kind))
		}
	}
	return strings.Join(privateFiles(), ", ") + " are age files, sealed to " + strings.Join(kinds, ", "), nil
}

// sealSecond seals the key directory of the second KMS, which was plain, in its
// place.
func (d *demo) sealSecond(ctx context.Context) (string, error) {
	plain, err := os.ReadFile(d.path(secondCerts, "root-ca.key"))
	if err != nil {
		return "", fmt.Errorf("looking at the key directory: %w", err)
	}
	if seal.Sealed(plain) {
		return "", errors.New("its root-ca.key is sealed before")
	}
	text, err := os.ReadFile(d.path(secondConfig))
	if err != nil {
		return "", fmt.Errorf("reading configuration: %w", err)
	}
	if err := d.writeConfig(sealedSecond, string(text)+d.sealText(passphraseFile)); err != nil {
		return "", err
	}
	if _, err := d.kmsctl(ctx, "seal", "add", "--config", d.path(sealedSecond)); err != nil {
		return "", err
	}
	if _, err := d.sealed(secondCerts); err != nil {
		return "", err
	}
	return "its files were plain; kmsctl seal add put sealed ones in their place, with the same keys", nil
}

func (d *demo) writeConfig(name, text string) error {
	if err := os.WriteFile(d.path(name), []byte(text), 0o644); err != nil { //nolint:gosec // the directory is the caller's choice
		return fmt.Errorf("writing configuration: %w", err)
	}
	return nil
}

// startFirst starts the first KMS with a configuration, and sees that it derives
// the keys of before.
func (d *demo) startFirst(ctx context.Context, config string) error {
	if err := d.kms.stop(); err != nil {
		return err
	}
	d.pinned.CloseIdleConnections()
	var err error
	if d.kms, err = start(d.programs["dstack-kms"], "", d.dir, "--config", d.path(config)); err != nil {
		return err
	}
	if err := waitFor(ctx, d.kms, d.pinned, d.url()+"/ready"); err != nil {
		return err
	}
	got, err := d.getKeys(ctx, d.url())
	if err != nil {
		return err
	}
	if !bytes.Equal(got.DiskKey.Bytes(), d.keys.DiskKey.Bytes()) || !bytes.Equal(got.K256Key.Bytes(), d.keys.K256Key.Bytes()) {
		return errors.New("it derives other keys")
	}
	return nil
}

func (d *demo) restart(ctx context.Context) (string, error) {
	by := "the passphrase"
	if d.seals.tpm != nil {
		by = "the TPM"
	}
	return by + " opens the files; the application gets the very same keys", d.startFirst(ctx, configFile)
}

// measure changes what the TPM has measured.
func (d *demo) measure(ctx context.Context) (string, error) {
	err := d.seals.tpm.Extend(ctx, measuredPCR, sha256.Sum256([]byte("another kernel")))
	return fmt.Sprintf("PCR %d is extended; dstack-kms, which runs, goes on", measuredPCR), err
}

// refused starts the first KMS with a configuration that opens nothing, and
// returns the reasons that it gives.
func (d *demo) refused(ctx context.Context, config string) (string, error) {
	if err := d.kms.stop(); err != nil {
		return "", err
	}
	before, err := d.fingerprint()
	if err != nil {
		return "", err
	}
	p, err := start(d.programs["dstack-kms"], "-refused", d.dir, "--config", d.path(config))
	if err != nil {
		return "", err
	}
	defer p.stop() //nolint:errcheck // it has ended
	select {
	case <-p.ended:
	case <-ctx.Done():
		return "", errors.Join(errors.New("it does not refuse"), p.stop())
	}
	if exit, ok := errors.AsType[*exec.ExitError](p.err); !ok || exit.ExitCode() != 1 {
		return "", fmt.Errorf("dstack-kms ended: %w", exitReason(p.err))
	}
	after, err := d.fingerprint()
	if err != nil {
		return "", err
	}
	if before != after {
		return "", errors.New("it was refused and changed the key directory")
	}
	lines := p.tail()
	return strings.TrimPrefix(lines[len(lines)-1], "Error: "), nil
}

// fingerprint is a digest of all files of the first KMS.
func (d *demo) fingerprint() (string, error) {
	h := sha256.New()
	entries, err := os.ReadDir(d.path(certsDir))
	if err != nil {
		return "", fmt.Errorf("looking into the key directory: %w", err)
	}
	for _, e := range entries {
		data, err := os.ReadFile(d.path(certsDir, e.Name()))
		if err != nil {
			return "", fmt.Errorf("looking into the key directory: %w", err)
		}
		fmt.Fprintf(h, "%s %d\n", e.Name(), len(data)) //nolint:errcheck // a hash takes all
		h.Write(data)
	}
	return string(h.Sum(nil)), nil
}

// tryTPMAlone sees the refusal of a TPM that has measured something else.
func (d *demo) tryTPMAlone(ctx context.Context) (string, error) {
	if err := d.changedConfig(withoutPassphrase, ""); err != nil {
		return "", err
	}
	reason, err := d.refused(ctx, withoutPassphrase)
	if err == nil && !strings.Contains(reason, "tpm: ") {
		err = fmt.Errorf("it is refused for another reason: %s", reason)
	}
	return "refused, nothing is made anew: " + reason, err
}

// changedConfig is the first KMS's configuration with another passphrase file, or
// with none.
func (d *demo) changedConfig(name, passphrase string) error {
	text, err := os.ReadFile(d.path(configFile))
	if err != nil {
		return fmt.Errorf("reading configuration: %w", err)
	}
	return d.writeConfig(name, strings.Replace(string(text), d.sealText(passphraseFile), d.sealText(passphrase), 1))
}

func (d *demo) tryWrongPassphrase(ctx context.Context) (string, error) {
	if err := d.changedConfig(wrongPassphrase, passphraseFile+".wrong"); err != nil {
		return "", err
	}
	reason, err := d.refused(ctx, wrongPassphrase)
	if err == nil && !strings.Contains(reason, "passphrase: ") {
		err = fmt.Errorf("it is refused for another reason: %s", reason)
	}
	if err != nil {
		return "", err
	}
	return "refused, nothing is made anew: " + reason, d.startFirst(ctx, configFile)
}

func (d *demo) startWithBoth(ctx context.Context) (string, error) {
	return "the passphrase opens what the TPM does not; the very same keys", d.startFirst(ctx, configFile)
}

// rotate seals the files again, to what is measured now, while the KMS serves.
func (d *demo) rotate(ctx context.Context) (string, error) {
	before, err := d.fingerprint()
	if err != nil {
		return "", err
	}
	if _, err := d.kmsctl(ctx, "seal", "rotate", "--config", d.path(configFile)); err != nil {
		return "", err
	}
	after, err := d.fingerprint()
	if err == nil && before == after {
		err = errors.New("the files are as before")
	}
	return "kmsctl seal rotate: other file keys, the root keys of before", err
}

func (d *demo) startTPMAlone(ctx context.Context) (string, error) {
	if err := d.startFirst(ctx, withoutPassphrase); err != nil {
		return "", err
	}
	return "the TPM opens the files again, without the passphrase", d.startFirst(ctx, configFile)
}

// openCopy opens a copy of root-ca.key as the holder of the escrow would, and
// where there is the age command, with that.
func (d *demo) openCopy(ctx context.Context) (string, error) {
	data, err := os.ReadFile(d.path(certsDir, "root-ca.key"))
	if err == nil {
		err = errors.Join(os.Mkdir(d.path(escrowCopy), 0o700), os.WriteFile(d.path(escrowCopy, "root-ca.key"), data, 0o600)) //nolint:gosec // as above
	}
	if err != nil {
		return "", fmt.Errorf("copying root-ca.key: %w", err)
	}
	r, err := age.Decrypt(bytes.NewReader(data), d.seals.identity)
	if err != nil {
		return "", fmt.Errorf("opening the copy: %w", err)
	}
	plain, err := io.ReadAll(io.LimitReader(r, 1<<20))
	if err != nil {
		return "", fmt.Errorf("opening the copy: %w", err)
	}
	if err := d.isRootKey(plain); err != nil {
		return "", err
	}
	command, err := exec.LookPath("age")
	if err != nil {
		return "the key in it is that of root-ca.crt; age itself, which would print it, is not in PATH", nil //nolint:nilerr // what was opened in this process is enough
	}
	cmd := exec.CommandContext(ctx, command, "-d", "-i", d.path(escrowFile), d.path(escrowCopy, "root-ca.key"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("age -d: %w", err)
	}
	return "age -d prints the PEM of the key that root-ca.crt is of", d.isRootKey(out)
}

// isRootKey wants the private key of root-ca.crt.
func (d *demo) isRootKey(text []byte) error {
	block, _ := pem.Decode(text)
	if block == nil {
		return errors.New("what was opened is no PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return fmt.Errorf("reading what was opened: %w", err)
	}
	ours, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return errors.New("what was opened is no key of an elliptic curve")
	}
	data, err := os.ReadFile(d.path(certsDir, caFile))
	if err != nil {
		return fmt.Errorf("reading the root certificate: %w", err)
	}
	certificate, _ := pem.Decode(data)
	if certificate == nil {
		return errors.New("the root certificate is no PEM")
	}
	root, err := x509.ParseCertificate(certificate.Bytes)
	if err != nil {
		return fmt.Errorf("reading the root certificate: %w", err)
	}
	if !ours.PublicKey.Equal(root.PublicKey) {
		return errors.New("what was opened is another key than that of the root certificate")
	}
	return nil
}

// askForSeals runs kmsctl seal status.
func (d *demo) askForSeals(ctx context.Context) (string, error) {
	out, err := d.kmsctl(ctx, "seal", "status", "--config", d.path(configFile), "--json")
	if err != nil {
		return "", err
	}
	var status struct {
		Seals []struct {
			Kind  string
			Opens bool
		}
	}
	if err := json.Unmarshal([]byte(out), &status); err != nil || len(status.Seals) == 0 {
		return "", fmt.Errorf("kmsctl seal status printed %q", out)
	}
	var words []string
	for _, s := range status.Seals {
		switch {
		case s.Opens:
			words = append(words, s.Kind+" opens")
		case s.Kind == string(seal.KindEscrow):
			words = append(words, "escrow is elsewhere")
		default:
			return "", fmt.Errorf("%s does not open", s.Kind)
		}
	}
	return strings.Join(words, ", "), nil
}
