package pcs

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// MaxBodySize is the largest answer that is read, in bytes. The largest there
// is, a revocation list, has some tens of thousands.
const MaxBodySize = 4 << 20

const (
	attempts   = 3
	firstPause = 200 * time.Millisecond
)

type answer struct {
	header http.Header
	body   []byte
}

// get asks for address, three times at most: a GET may be repeated. It does so
// after transport errors and after the statuses by which a service says that it
// is busy, as long as ctx lasts.
func (c *Client) get(ctx context.Context, address string) (answer, error) {
	pause := firstPause
	for attempt := 1; ; attempt++ {
		a, again, err := c.once(ctx, address)
		if err == nil || !again || attempt == attempts {
			return a, err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return a, err
		}
		pause *= 2
	}
}

// once makes one request. again says whether it makes sense to repeat it.
func (c *Client) once(ctx context.Context, address string) (a answer, again bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return a, false, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		// The URL is told by our caller; url.Error would tell it again.
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err
		}
		return a, true, err
	}
	defer resp.Body.Close() //nolint:errcheck // it was read as far as it matters
	if resp.StatusCode != http.StatusOK {
		return a, busy(resp.StatusCode), fmt.Errorf("status %s", resp.Status)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxBodySize+1))
	if err != nil {
		return a, true, fmt.Errorf("reading the answer: %w", err)
	}
	if len(body) > MaxBodySize {
		return a, false, fmt.Errorf("answer of more than %d bytes", MaxBodySize)
	}
	return answer{header: resp.Header, body: body}, false, nil
}

func busy(status int) bool {
	switch status {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	default:
		return false
	}
}

// decodeChain takes the percent-encoding off a PEM chain. Services differ in
// whether a plus sign is one, as in a path, or a space, as in a query; the
// first line of PEM tells which, for it has a space.
func decodeChain(values []string) ([]byte, error) {
	if len(values) != 1 || values[0] == "" {
		return nil, fmt.Errorf("%d values, want 1", len(values))
	}
	unescape := url.PathUnescape
	if strings.Contains(values[0], "BEGIN+CERTIFICATE") {
		unescape = url.QueryUnescape
	}
	chain, err := unescape(values[0])
	if err != nil {
		return nil, err
	}
	return []byte(chain), nil
}

// decodeCRL returns the DER of a list that is DER, hex of it or PEM: a PCCS
// gives the root's in hex.
func decodeCRL(body []byte) ([]byte, error) {
	if block, _ := pem.Decode(body); block != nil {
		return block.Bytes, nil
	}
	// DER starts with the byte 0x30; its hex with the digits of that.
	text := bytes.TrimSpace(body)
	if !bytes.HasPrefix(text, []byte("30")) {
		return body, nil
	}
	der := make([]byte, hex.DecodedLen(len(text)))
	if _, err := hex.Decode(der, text); err != nil {
		return nil, fmt.Errorf("revocation list in hex: %w", err)
	}
	return der, nil
}
