package seal

import (
	"bytes"

	"filippo.io/age"
)

// Converse speaks with a plugin that says output, and returns what it was told.
func Converse(output []byte, recipient string, fileKey []byte) (stanzas []*age.Stanza, labels []string, told string, err error) {
	var to bytes.Buffer
	stanzas, labels, err = converse(bytes.NewReader(output), &to, recipient, fileKey)
	return stanzas, labels, to.String(), err
}
