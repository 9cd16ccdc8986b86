package kms

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/crypto/bcrypt"

	"teekms/internal/keys"
	"teekms/internal/rpc"
)

// Bounds of credentials.
const (
	// maxBcryptCost bounds the work of one try: 14 is about a second.
	maxBcryptCost = 14
	// maxHtpasswdUsers bounds an htpasswd file.
	maxHtpasswdUsers = 1000
)

// adminChallenge is what existing operators' tools expect with status 401.
const adminChallenge = `Basic realm="dstack-kms admin"`

// CredentialsConfig configures [Credentials]. One of Token and Htpasswd is
// required.
type CredentialsConfig struct {
	// Token is the secret of administrators; empty is none.
	Token keys.Secret
	// Htpasswd is the text of an htpasswd file: NAME:HASH a line, bcrypt hashes
	// alone; empty lines and lines that begin with # do not count.
	Htpasswd []byte
	// Log gets a line for every wrong try. Required.
	Log *zap.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Credentials tells administrators from others. Its methods may be called from
// several goroutines.
type Credentials struct {
	// token is the digest of the token; nil where there is none.
	token *[sha256.Size]byte
	// hashes are bcrypt hashes by user name, nil where there are none.
	hashes map[string][]byte
	// decoy costs as much to compare as the dearest of hashes, so that the
	// time of an answer does not tell which names exist.
	decoy []byte
	log   *zap.Logger
	now   func() time.Time

	// hashing is held while a password is hashed: one core at most is kept
	// busy.
	hashing sync.Mutex
	mu      sync.Mutex
	tries   rpc.Tries // guarded by mu
}

// NewCredentials returns credentials, or an error that names the line of an
// htpasswd file and nothing of what it holds.
func NewCredentials(c CredentialsConfig) (*Credentials, error) {
	if c.Log == nil {
		return nil, errors.New("making admin credentials: Log is required")
	}
	cr := &Credentials{log: c.Log, now: c.Now}
	if cr.now == nil {
		cr.now = time.Now //nolint:forbidigo // the default of an injected clock
	}
	if c.Token.Len() > 0 {
		digest := sha256.Sum256(c.Token.Bytes())
		cr.token = &digest
	}
	if err := cr.readHtpasswd(c.Htpasswd); err != nil {
		return nil, err
	}
	if cr.token == nil && len(cr.hashes) == 0 {
		return nil, errors.New("making admin credentials: there is neither a token nor a user")
	}
	return cr, nil
}

func (c *Credentials) readHtpasswd(text []byte) error {
	dearest := 0
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, hash, ok := strings.Cut(line, ":")
		if !ok || name == "" {
			return fmt.Errorf("reading htpasswd: line %d is not NAME:HASH", n)
		}
		cost, err := bcrypt.Cost([]byte(hash))
		switch _, twice := c.hashes[name]; {
		case err != nil || len(hash) != 60:
			return fmt.Errorf("reading htpasswd: line %d holds no bcrypt hash (htpasswd -B makes one)", n)
		case cost > maxBcryptCost:
			return fmt.Errorf("reading htpasswd: line %d costs %d, more than %d", n, cost, maxBcryptCost)
		case twice:
			return fmt.Errorf("reading htpasswd: line %d names a user for the second time", n)
		case len(c.hashes) == maxHtpasswdUsers:
			return fmt.Errorf("reading htpasswd: more than %d users", maxHtpasswdUsers)
		}
		if c.hashes == nil {
			c.hashes = map[string][]byte{}
		}
		c.hashes[name] = []byte(hash)
		if cost > dearest {
			dearest, c.decoy = cost, []byte(hash)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("reading htpasswd: %w", err)
	}
	return nil
}

// Require lets only requests with a right credential through to next, whatever
// their path. All others are answered with status 401, a challenge and no body.
//
// A credential is the token in X-Admin-Token, as a bearer token, as a Basic
// password or as a Basic name with an empty password, or a name and password of
// the htpasswd file.
func (c *Credentials) Require(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if operator, ok := c.admit(r); ok {
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), operatorKey{}, operator)))
			return
		}
		w.Header().Set("WWW-Authenticate", adminChallenge)
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(http.StatusUnauthorized)
	})
}

type operatorKey struct{}

// The operators that have no name.
const (
	operatorToken = "token"
	operatorNone  = "no credential"
)

// operatorOf says who calls, for the audit log: the user of the htpasswd file, or
// that the token was shown, or that nothing was asked for.
func operatorOf(ctx context.Context) string {
	if operator, ok := ctx.Value(operatorKey{}).(string); ok {
		return operator
	}
	return operatorNone
}

// attempt is what a request shows.
type attempt struct {
	// tokens are texts of which one may be the token.
	tokens []string
	// basic is true when there are a name and a password.
	basic          bool
	name, password string
}

// attemptOf reads the credentials of a request. Of a header that comes twice
// nothing is taken.
func attemptOf(r *http.Request) (a attempt, shown bool) {
	if values := r.Header["X-Admin-Token"]; len(values) > 0 {
		shown = true
		if len(values) == 1 {
			a.tokens = append(a.tokens, strings.TrimSpace(values[0]))
		}
	}
	values := r.Header["Authorization"]
	if len(values) != 1 {
		return a, shown || len(values) > 0
	}
	if name, password, ok := r.BasicAuth(); ok {
		a.basic, a.name, a.password = true, name, password
		a.tokens = append(a.tokens, password)
		if password == "" {
			a.tokens = append(a.tokens, name)
		}
		return a, true
	}
	if scheme, token, ok := strings.Cut(values[0], " "); ok && strings.EqualFold(scheme, "Bearer") {
		a.tokens = append(a.tokens, strings.TrimSpace(token))
	}
	return a, true
}

// admit tells whether a request holds a right credential, and whose. While the
// wrong tries are too many, none is looked at (rpc.Tries).
func (c *Credentials) admit(r *http.Request) (operator string, ok bool) {
	a, shown := attemptOf(r)
	if !shown {
		return "", false
	}
	hash := a.basic && c.hashes != nil
	if hash {
		c.hashing.Lock()
		defer c.hashing.Unlock()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.tries.Allow(r.RemoteAddr, c.now()) {
		return "", false
	}
	if c.isToken(a.tokens) {
		return operatorToken, true
	}
	right := c.tries.Wrong(r.RemoteAddr, c.now())
	if hash && c.isPassword(a.name, a.password) {
		right()
		return "user " + a.name, true
	}
	c.log.Warn("wrong admin credential", zap.String("peer", r.RemoteAddr))
	return "", false
}

// isToken compares every candidate, so that the time says nothing of which one.
func (c *Credentials) isToken(candidates []string) bool {
	if c.token == nil {
		return false
	}
	equal := 0
	for _, text := range candidates {
		got := sha256.Sum256([]byte(text))
		equal |= subtle.ConstantTimeCompare(got[:], c.token[:])
	}
	return equal == 1
}

// isPassword is called with mu held and lets go of it while it hashes, so that
// the token works meanwhile.
func (c *Credentials) isPassword(name, password string) bool {
	c.mu.Unlock()
	defer c.mu.Lock()
	hash, known := c.hashes[name]
	if !known {
		hash = c.decoy
	}
	return bcrypt.CompareHashAndPassword(hash, []byte(password)) == nil && known
}
