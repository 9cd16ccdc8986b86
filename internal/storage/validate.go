package storage

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"
)

// DefaultTimeout is the Timeout of a Config that has none.
const DefaultTimeout = 10 * time.Second

const (
	maxPathLength  = 4096
	maxLabelLength = 256
)

// Validate tells whether the configuration has the shape that its Type needs.
// It connects to nothing and reads no file. Its errors wrap [ErrConfig] and hold
// nothing of the URL but the names of its parameters.
func (c *Config) Validate() error {
	if err := c.validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return nil
}

func (c *Config) validate() error {
	if c.Timeout < 0 || c.Timeout > math.MaxInt32*time.Millisecond {
		return errors.New("the timeout is out of range")
	}
	switch c.Type {
	case SQLite:
		if c.MasterPassword.Len() > 0 {
			return fmt.Errorf("type %q encrypts nothing and takes no master password: use %q", SQLite, SQLiteEncrypted)
		}
		return validatePath(c.Path)
	case SQLiteEncrypted:
		return validatePath(c.Path)
	case PostgreSQL, MySQL:
		if c.MasterPassword.Len() > 0 {
			return fmt.Errorf("type %q takes no master password: its own is in the URL", c.Type)
		}
	case RedisFindex:
		if c.MasterPassword.Len() == 0 {
			return fmt.Errorf("type %q needs a master password", RedisFindex)
		}
		if err := validateLabel(c.Label); err != nil {
			return err
		}
	case "":
		return errors.New("no type is given")
	default:
		return errors.New("the type is unknown")
	}
	_, err := c.server()
	return err
}

func validatePath(path string) error {
	switch {
	case path == "":
		return errors.New("no path is given: the directory of the database")
	case len(path) > maxPathLength:
		return fmt.Errorf("the path is longer than %d bytes", maxPathLength)
	case !utf8.ValidString(path), strings.ContainsFunc(path, isControl):
		return errors.New("the path holds control characters or is not UTF-8")
	}
	return nil
}

func validateLabel(label string) error {
	switch {
	case label == "":
		return fmt.Errorf("type %q needs a label", RedisFindex)
	case len(label) > maxLabelLength:
		return fmt.Errorf("the label is longer than %d bytes", maxLabelLength)
	case !utf8.ValidString(label), strings.ContainsFunc(label, isControl):
		return errors.New("the label holds control characters or is not UTF-8")
	}
	return nil
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }
