// Package pkcs12 opens the PKCS#12 files that hold the certificate of an HTTPS
// port and its key (docs/configuration.md#pkcs12).
//
// Such a file comes from outside and says itself how much work it takes to open
// it: [CheckShape] walks it without deriving a key, [CheckWith] with the password
// walks what is encrypted too, and [Open] does nothing before that.
package pkcs12

import (
	"crypto/tls"
	"errors"
	"strings"
	"time"
	"unicode/utf8"

	gopkcs12 "software.sslmate.com/src/go-pkcs12"

	"teekms/internal/keys"
)

// MaxSize bounds a file, in bytes.
const MaxSize = 256 << 10

// Error says why a file is refused. Its text is for who sent the file and
// repeats nothing of it but names of algorithms.
type Error struct {
	// Reason is the text behind "PKCS#12: ".
	Reason string
	// Err is the cause, for the log; it may be nil.
	Err error
}

// Error returns "PKCS#12: REASON".
func (e *Error) Error() string { return "PKCS#12: " + e.Reason }

func (e *Error) Unwrap() error { return e.Err }

func refused(reason string) error { return &Error{Reason: reason} }

// ErrPassword says that the file opens with another password, or was changed.
var ErrPassword = errors.New("wrong password, or the file was changed")

// Open opens a file and returns what a TLS server serves: the one key in it, its
// certificate, and the chain in order, without the root. The warnings are
// sentences for the operator. Errors are of type [*Error].
func Open(data []byte, password keys.Secret, now time.Time) (tls.Certificate, []string, error) {
	w, err := walk(data, password)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	if !w.authenticated {
		return tls.Certificate{}, nil, refused(reasonNoMAC)
	}
	key, leaf, others, err := gopkcs12.DecodeChain(data, *w.password)
	if err != nil {
		return tls.Certificate{}, nil, opening(err)
	}
	return serverCertificate(key, leaf, others, now)
}

// CheckWith tells whether data can be opened with the password in bounded work.
// Unlike [CheckShape] it derives keys, to look at what is encrypted: there may be
// keys with iteration counts of their own. It is for those who then open the file
// by other rules than those of a server. That the password is right it does not
// say; [ErrPassword] is in the error where it is seen to be wrong. Errors are of
// type [*Error].
func CheckWith(data []byte, password keys.Secret) error {
	_, err := walk(data, password)
	return err
}

// walk goes through all of a file.
func walk(data []byte, password keys.Secret) (*walker, error) {
	text := string(password.Bytes())
	if strings.ContainsFunc(text, notBMP) || !utf8.ValidString(text) {
		return nil, refused("the password has a character that passwords of such files cannot have")
	}
	w := &walker{password: &text}
	return w, w.check(data)
}

// notBMP tells what a BMPString, in which passwords are written, cannot hold.
func notBMP(r rune) bool { return r > 0xffff }

func wrongPassword(cause error) error {
	return &Error{Reason: ErrPassword.Error(), Err: errors.Join(ErrPassword, cause)}
}

// opening gives the errors of the library texts of our own: some of them show
// its insides.
func opening(err error) error {
	text := err.Error()
	reason := "its contents cannot be read"
	switch {
	case errors.Is(err, gopkcs12.ErrIncorrectPassword):
		return wrongPassword(err)
	case errors.Is(err, gopkcs12.ErrDecryption):
		reason = "it cannot be decrypted with this password"
	case strings.Contains(text, "exactly one key bag"):
		reason = "it holds several keys: export the one of the server"
	case strings.Contains(text, "private key missing"):
		reason = "it holds no private key"
	case strings.Contains(text, "certificate missing"):
		reason = "it holds no certificate"
	case strings.Contains(text, "unsupported elliptic curve"), strings.Contains(text, "unknown elliptic curve"):
		reason = "its key is on an elliptic curve that is not supported: want P-256 or P-384"
	case strings.Contains(text, "not supported"), strings.Contains(text, "are supported"), strings.Contains(text, "can only decode"):
		reason = "it uses an algorithm that is not supported"
	case strings.Contains(text, "x509:"):
		reason = "its certificate or its key cannot be read"
	}
	return &Error{Reason: reason, Err: err}
}

const reasonNoMAC = "it has no MAC, so nothing tells whether it was changed: export it anew with one"
