package bootstrapserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"

	"teekms/cmd/kmsctl/internal/terminal"
	"teekms/internal/keys"
)

// The bounds of what is read and shown of an answer, in bytes and characters.
const (
	maxAnswer = 64 << 10
	maxShown  = 2000
)

// The kinds of database, which are the paths of their routes too.
const (
	PostgreSQL  = "postgresql"
	MySQL       = "mysql"
	SQLite      = "sqlite"
	SQLiteEnc   = "sqlite-enc"
	RedisFindex = "redis-findex"
)

// DatabaseTypes are the kinds of database.
func DatabaseTypes() []string { return []string{PostgreSQL, MySQL, SQLite, SQLiteEnc, RedisFindex} }

// Database is the configuration of a database. What is not of its type stays
// empty.
type Database struct {
	// Type is one of [DatabaseTypes].
	Type string
	// URL is that of a server, which may hold a password; Path is the directory
	// of SQLite, as the server sees it.
	URL  keys.Secret
	Path string
	// MasterPassword is that of Redis, or that of encrypted SQLite where its key
	// is not to come from the root keys; Label is that of Redis.
	MasterPassword keys.Secret
	Label          string
}

// AnswerError is the refusal of a server.
type AnswerError struct {
	// Path is the route, such as /start.
	Path string
	// Status is the HTTP status.
	Status int
	// Text is what the server said; it is printable and of bounded length.
	Text string
}

func (e *AnswerError) Error() string {
	if e.Text == "" {
		return fmt.Sprintf("%s is answered with %d %s", e.Path, e.Status, http.StatusText(e.Status))
	}
	return e.Text
}

// PKCS12Password gives the password of the PKCS#12 file.
func (c *Client) PKCS12Password(ctx context.Context, password keys.Secret) (string, error) {
	return c.postJSON(ctx, "/pkcs12-password", map[string]any{"password": string(password.Bytes())})
}

// PKCS12 gives the PKCS#12 file.
func (c *Client) PKCS12(ctx context.Context, file []byte) (string, error) {
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	part, err := w.CreatePart(textproto.MIMEHeader{
		"Content-Disposition": {`form-data; name="file"; filename="bootstrap.p12"`},
		"Content-Type":        {"application/octet-stream"},
	})
	if err == nil {
		_, err = part.Write(file)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return "", fmt.Errorf("encoding the PKCS#12 file: %w", err)
	}
	return c.post(ctx, "/pkcs12", w.FormDataContentType(), body.Bytes())
}

// Database gives the configuration of the database.
func (c *Client) Database(ctx context.Context, d Database) (string, error) {
	body := map[string]any{}
	switch d.Type {
	case SQLite, SQLiteEnc:
		body["path"] = d.Path
		if d.MasterPassword.Len() > 0 {
			body["master_password"] = string(d.MasterPassword.Bytes())
		}
	case PostgreSQL, MySQL:
		body["url"] = string(d.URL.Bytes())
	case RedisFindex:
		body["url"] = string(d.URL.Bytes())
		body["master_password"] = string(d.MasterPassword.Bytes())
		body["findex_label"] = d.Label
	default:
		return "", fmt.Errorf("no database type %q", d.Type)
	}
	return c.postJSON(ctx, "/"+d.Type, body)
}

// Start has the KMS start; with clearDatabase, the database is emptied before.
func (c *Client) Start(ctx context.Context, clearDatabase bool) (string, error) {
	return c.postJSON(ctx, "/start", map[string]any{"clear_database": clearDatabase})
}

func (c *Client) postJSON(ctx context.Context, path string, v map[string]any) (string, error) {
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return "", fmt.Errorf("encoding the body of %s: %w", path, err)
	}
	return c.post(ctx, path, "application/json", bytes.TrimSuffix(body.Bytes(), []byte("\n")))
}

// post returns what the server says of its success, printable.
func (c *Client) post(ctx context.Context, path, contentType string, body []byte) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.cfg.URL.JoinPath(path).String(), bytes.NewReader(body))
	if err != nil {
		return "", fmt.Errorf("making the request of %s: %w", path, err)
	}
	req.Header.Set("Content-Type", contentType)
	if path != "/start" {
		// The last value counts, so a call on a connection that the server just
		// closed may be made again. Without a value this goes to the transport only.
		req.Header["Idempotency-Key"] = nil
	}
	if c.cfg.Token.Len() > 0 {
		req.Header.Set("Authorization", "Bearer "+string(c.cfg.Token.Bytes()))
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err
		}
		return "", fmt.Errorf("posting %s: %w", path, err)
	}
	defer resp.Body.Close() //nolint:errcheck // nothing was written
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return "", fmt.Errorf("reading the answer of %s: %w", path, err)
	}
	if len(text) > maxAnswer {
		return "", fmt.Errorf("the answer of %s has more than %d bytes", path, maxAnswer)
	}
	return readAnswer(path, resp.StatusCode, text)
}

// readAnswer reads {"success": …} or {"error": …}. Servers of the older kind
// write their errors as plain text.
func readAnswer(path string, code int, text []byte) (string, error) {
	var answer struct {
		Success *string `json:"success"`
		Error   string  `json:"error"`
	}
	err := json.Unmarshal(text, &answer)
	switch {
	case code != http.StatusOK && err == nil && answer.Error != "":
		return "", &AnswerError{Path: path, Status: code, Text: shown(answer.Error)}
	case code != http.StatusOK && err != nil:
		return "", &AnswerError{Path: path, Status: code, Text: shown(string(text))}
	case code != http.StatusOK:
		return "", &AnswerError{Path: path, Status: code}
	case err != nil || answer.Success == nil:
		return "", fmt.Errorf("the answer of %s is not that of a bootstrap server", path)
	}
	return shown(*answer.Success), nil
}

// shown makes one printable line of bounded length of a server's text.
func shown(text string) string {
	line := []rune(terminal.Printable(strings.Join(strings.Fields(text), " ")))
	if len(line) > maxShown {
		line = append(line[:maxShown], '…')
	}
	return string(line)
}
