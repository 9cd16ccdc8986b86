package redisdb

import (
	"context"
	"errors"
	"strings"
)

// errEvicts is a refusal, because what an audit log loses it loses silently.
var errEvicts = errors.New("the Redis server removes records when its memory is full: set maxmemory-policy to noeviction")

// settings are what of the server's configuration decides whether a record that
// was acknowledged stays; empty where it does not tell.
type settings struct{ appendOnly, appendFsync, eviction string }

// checkServer looks whether the server keeps what it acknowledged. A server that
// evicts is refused, one that may lose is warned of.
func (db *DB) checkServer(ctx context.Context) ([]string, error) {
	s, err := db.readSettings(ctx)
	if err != nil {
		return nil, err
	}
	return s.judge()
}

func (s settings) judge() (warnings []string, err error) {
	const set = `set "appendonly yes" and "appendfsync always"`
	switch {
	case s.appendOnly == "" || s.appendFsync == "" && s.appendOnly == "yes":
		warnings = append(warnings, "Redis does not tell whether it writes every record to disk before it acknowledges it: "+
			"an acknowledged audit record can be lost unless its configuration says so ("+set+")")
	case s.appendOnly != "yes" || s.appendFsync != "always":
		warnings = append(warnings, "Redis acknowledges audit records before they are on disk: "+
			"an acknowledged record can be lost when it stops ("+set+")")
	}
	switch {
	case s.eviction == "noeviction":
	case s.eviction == "":
		warnings = append(warnings, `Redis does not tell whether it removes records when its memory is full: set "maxmemory-policy noeviction"`)
	case strings.HasPrefix(s.eviction, "volatile-"):
		warnings = append(warnings, `Redis removes keys with a time to live when its memory is full, which ours have not: "maxmemory-policy noeviction" is the safe setting`)
	default:
		return nil, errEvicts
	}
	return warnings, nil
}

// readSettings asks by CONFIG GET, and by INFO where that is forbidden.
func (db *DB) readSettings(ctx context.Context) (settings, error) {
	var s settings
	for name, to := range map[string]*string{
		"appendonly": &s.appendOnly, "appendfsync": &s.appendFsync, "maxmemory-policy": &s.eviction,
	} {
		err := db.ask(ctx, "reading the settings of", func(ctx context.Context) error {
			found, err := db.client.ConfigGet(ctx, name).Result()
			*to = found[name]
			return ignoreRefusal(err)
		})
		if err != nil {
			return settings{}, err
		}
	}
	if s.appendOnly != "" && s.eviction != "" {
		return s, nil
	}
	err := db.ask(ctx, "reading the settings of", func(ctx context.Context) error {
		info, err := db.client.Info(ctx).Result()
		s.fromInfo(info)
		return ignoreRefusal(err)
	})
	return s, err
}

// ignoreRefusal drops an error that is an answer of the server.
func ignoreRefusal(err error) error {
	if code := replyCode(err); code != "" && code != "LOADING" {
		return nil
	}
	return err
}

// fromInfo fills what is missing from the text of INFO.
func (s *settings) fromInfo(info string) {
	for line := range strings.Lines(info) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch {
		case name == "aof_enabled" && s.appendOnly == "" && value == "1":
			s.appendOnly = "yes"
		case name == "aof_enabled" && s.appendOnly == "" && value == "0":
			s.appendOnly = "no"
		case name == "maxmemory_policy" && s.eviction == "":
			s.eviction = value
		}
	}
}
