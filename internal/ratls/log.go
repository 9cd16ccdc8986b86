package ratls

import (
	"fmt"
	"sync"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
)

// Bounds of a logCache. A stripped log of a guest has about 2 KB.
const (
	maxLogs     = 128
	maxLogBytes = 64 << 10
)

// logCache remembers event logs by their very text: a guest presents the same
// one with every quote. Only logs that agreed with a verified quote are
// remembered, and they must agree with the next one, too. The zero value is
// empty.
type logCache struct {
	mu    sync.RWMutex
	known map[string]checkedLog // guarded by mu
}

// checkedLog is a log in which nothing is ambiguous.
type checkedLog struct {
	log   eventlog.Log
	rtmr3 attest.Measurement
}

// check holds a log to what identity is read from: RTMR3, as the quote has it,
// must be all of it, also where no log came, and nothing in it may be
// ambiguous.
func (c *logCache) check(text []byte, rtmr3 attest.Measurement) (eventlog.Log, error) {
	c.mu.RLock()
	l, known := c.known[string(text)]
	c.mu.RUnlock()
	if !known {
		var err error
		if l, err = readLog(text); err != nil {
			return nil, err
		}
	}
	if l.rtmr3 != rtmr3 {
		return nil, fmt.Errorf("RTMR%d replays to %x, the quote has %x", eventlog.RuntimeIMR, l.rtmr3, rtmr3)
	}
	if !known && len(text) <= maxLogBytes {
		c.store(string(text), l)
	}
	return l.log, nil
}

func readLog(text []byte) (l checkedLog, err error) {
	l.log = eventlog.Log{}
	if len(text) > 0 {
		if l.log, err = eventlog.Parse(text); err != nil {
			return l, err //nolint:wrapcheck // the caller names the link
		}
	}
	rtmr, err := l.log.Replay()
	if err != nil {
		return l, err //nolint:wrapcheck // as above
	}
	l.rtmr3 = rtmr[eventlog.RuntimeIMR]
	_, err = l.log.Identity()
	return l, err //nolint:wrapcheck // as above
}

// store forgets any one log where a new one would be one too many.
func (c *logCache) store(text string, l checkedLog) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil {
		c.known = make(map[string]checkedLog)
	}
	for victim := range c.known {
		if len(c.known) < maxLogs {
			break
		}
		delete(c.known, victim)
	}
	c.known[text] = l
}
