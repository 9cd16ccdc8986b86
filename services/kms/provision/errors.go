package provision

import (
	"errors"
	"net/url"
	"slices"
	"strings"

	"connectrpc.com/connect"

	"teekms/internal/pkcs12"
	"teekms/internal/rpc"
	"teekms/internal/storage"
)

// Refusals of calls that come at the wrong time or from the wrong caller.
var (
	errNoDatabase    = errors.New("The KMS will not start: please provide database parameters to the bootstrap server first.") //nolint:revive,staticcheck // the words that operators know
	errBusy          = errors.New("the KMS is being started by another request")
	errStarting      = errors.New("the KMS is being started: settings are not taken before that has failed")
	errStarted       = errors.New("the KMS has been started: this server takes no more settings")
	errClosing       = errors.New("this server is being stopped")
	errNoCertificate = errors.New("a client certificate of the configured authority is required")
	errNoName        = errors.New("the client certificate has no common name")
	errNoClientAuth  = errors.New("the client certificate is not marked for client authentication")
)

// Refusal says why the settings cannot be used. Its Reason is shown to who
// posted them.
type Refusal struct {
	// Reason is one sentence without secrets.
	Reason string
	// Err is the cause, for the log; it may be nil.
	Err error
}

// Error returns the Reason.
func (e *Refusal) Error() string { return e.Reason }

func (e *Refusal) Unwrap() error { return e.Err }

// Errors is the table from the errors of this service to what callers see.
func Errors() rpc.Table {
	table := rpc.Table{
		rpc.As(connect.CodeFailedPrecondition, func(e *Refusal) string { return e.Reason }),
		rpc.As(connect.CodeInvalidArgument, func(e *pkcs12.Error) string { return e.Error() }),
		rpc.As(connect.CodeFailedPrecondition, func(e *storage.OtherRootError) string { return e.Error() }),
		rpc.Coded(func(e *databaseError) (connect.Code, string) { return e.code(), e.Error() }),
		rpc.As(connect.CodeInvalidArgument, func(e *rpc.FieldError) string { return e.Error() }),
	}
	for _, sentinel := range []error{errNoDatabase, errBusy, errStarting, errStarted, errClosing} {
		table = append(table, rpc.Is(sentinel, connect.CodeFailedPrecondition, ""))
	}
	for _, sentinel := range []error{errNoCertificate, errNoName, errNoClientAuth, rpc.ErrNoToken, rpc.ErrWrongToken, rpc.ErrTooManyTries} {
		table = append(table, rpc.Is(sentinel, connect.CodeUnauthenticated, ""))
	}
	return table
}

// databaseError is an error of package storage. Its whole text may be shown.
type databaseError struct{ error }

func (e *databaseError) Unwrap() error { return e.error }

func (e *databaseError) code() connect.Code {
	if errors.Is(e.error, storage.ErrConfig) {
		return connect.CodeInvalidArgument
	}
	return connect.CodeFailedPrecondition
}

// hiddenText stands in for a text that would have repeated a secret.
const hiddenText = "the settings are refused; the reason is not shown because it repeats a secret"

// minSecret is the length from which on a secret is looked for in texts:
// shorter ones are in many sentences by chance, and so are words.
const minSecret = 8

// repeats tells whether a text holds a secret.
func repeats(text, secret string) bool {
	aWord := strings.Trim(secret, "abcdefghijklmnopqrstuvwxyz") == ""
	return len(secret) >= minSecret && !aWord && strings.Contains(text, secret)
}

// hidden makes the errors of package storage public with all of their text, and
// replaces any error that repeats a secret: no driver is trusted not to.
func hidden(err error, secrets []string) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	if slices.ContainsFunc(secrets, func(secret string) bool { return repeats(text, secret) }) {
		return &Refusal{Reason: hiddenText}
	}
	for _, sentinel := range []error{storage.ErrConfig, storage.ErrWrongKey, storage.ErrIntegrity, storage.ErrUnavailable} {
		if errors.Is(err, sentinel) {
			return &databaseError{err}
		}
	}
	return err
}

// secretsOf lists the texts in the settings that nobody may read again.
func secretsOf(s *Settings) []string {
	raw := string(s.Database.URL.Bytes())
	secrets := []string{raw, string(s.Database.MasterPassword.Bytes()), string(s.PKCS12Password.Bytes())}
	// Where the URL does not parse, what is between the scheme and the last @.
	if _, rest, ok := strings.Cut(raw, "://"); ok {
		if at := strings.LastIndexByte(rest, '@'); at >= 0 {
			_, password, _ := strings.Cut(rest[:at], ":")
			secrets = append(secrets, password)
		}
	}
	if u, err := url.Parse(raw); err == nil && u.User != nil {
		password, _ := u.User.Password()
		secrets = append(secrets, password)
	}
	return secrets
}
