package config

import (
	"encoding/hex"
	"errors"
	"strings"
)

// errSubject says what a distinguished name must look like. It does not quote it.
var errSubject = errors.New("must be a distinguished name (RFC 4514) with one CN")

// subjectCN returns the CN of a distinguished name in the form of RFC 4514,
// such as "CN=kms.example.com,O=Example,C=FR".
func subjectCN(subject string) (string, error) {
	cn, found := "", false
	for rest, more := subject, true; more; {
		var attribute string
		attribute, rest, more = cutUnescaped(rest)
		name, value, ok := strings.Cut(attribute, "=")
		name = strings.TrimSpace(name)
		if !ok || name == "" || strings.ContainsAny(name, `\" `) {
			return "", errSubject
		}
		text, err := unescape(strings.TrimLeft(value, " "))
		if err != nil {
			return "", err
		}
		if strings.EqualFold(name, "CN") || name == "2.5.4.3" {
			if found {
				return "", errSubject
			}
			cn, found = text, true
		}
	}
	if !found || cn == "" {
		return "", errSubject
	}
	return cn, nil
}

// cutUnescaped cuts at the first comma or plus that no backslash stands before.
func cutUnescaped(s string) (before, after string, found bool) {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case ',', '+':
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

// unescape reads a value: a backslash stands before a special character or two
// hex digits; spaces at the end that have none before them do not count.
func unescape(s string) (string, error) {
	if strings.HasPrefix(s, "#") {
		return "", errSubject
	}
	var out strings.Builder
	end := 0
	for i := 0; i < len(s); i++ {
		if strings.IndexByte("\";<>\x00", s[i]) >= 0 {
			return "", errSubject
		}
		if s[i] != '\\' {
			out.WriteByte(s[i])
			if s[i] != ' ' {
				end = out.Len()
			}
			continue
		}
		switch rest := s[i+1:]; {
		case rest != "" && strings.IndexByte(` "#+,;<=>\`, rest[0]) >= 0:
			out.WriteByte(rest[0])
			i++
		case len(rest) >= 2:
			b, err := hex.DecodeString(rest[:2])
			if err != nil {
				return "", errSubject
			}
			out.Write(b)
			i += 2
		default:
			return "", errSubject
		}
		end = out.Len()
	}
	return out.String()[:end], nil
}
