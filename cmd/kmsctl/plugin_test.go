package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"filippo.io/age/plugin"
)

// pluginPrefix is what the test binary is called where it is an age plugin.
const pluginPrefix = "age-plugin-"

// pluginMain is an age plugin, whose recipients and identities are the text of an
// X25519 identity: nothing here is a secret.
func pluginMain(name string) int {
	p, err := plugin.New(name)
	if err != nil {
		return 3
	}
	p.HandleRecipient(func(data []byte) (age.Recipient, error) {
		id, err := age.ParseX25519Identity(string(data))
		if err != nil {
			return nil, err
		}
		return pluginHolder{name, p, id}, nil
	})
	p.HandleIdentity(func(data []byte) (age.Identity, error) {
		id, err := age.ParseX25519Identity(string(data))
		return pluginHolder{name, p, id}, err
	})
	return p.Main()
}

// pluginHolder is both ends of the plugin. Before it opens it says something, as
// one does whose token wants to be touched.
type pluginHolder struct {
	name string
	p    *plugin.Plugin
	id   *age.X25519Identity
}

func (h pluginHolder) Wrap(fileKey []byte) ([]*age.Stanza, error) {
	st, err := h.id.Recipient().Wrap(fileKey)
	for _, s := range st {
		s.Type = h.name
	}
	return st, err
}

func (h pluginHolder) Unwrap(stanzas []*age.Stanza) ([]byte, error) {
	var mine []*age.Stanza
	for _, s := range stanzas {
		if s.Type == h.name {
			mine = append(mine, &age.Stanza{Type: "X25519", Args: s.Args, Body: s.Body})
		}
	}
	if err := h.p.DisplayMessage("touch the token"); err != nil {
		return nil, err
	}
	return h.id.Unwrap(mine)
}

// The holder of the escrow has its key in a token, which a plugin talks to.
func TestEscrowOfAPlugin(t *testing.T) {
	const name = "tktoken"
	bin := t.TempDir()
	self, err := os.Executable()
	check(t, err)
	check(t, os.Symlink(self, filepath.Join(bin, pluginPrefix+name)))
	t.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	id, err := age.GenerateX25519Identity()
	check(t, err)
	v := newVictim(t)
	text, err := os.ReadFile(v.config)
	check(t, err)
	before, _, _ := bytes.Cut(text, []byte("[core.seal.escrow]"))
	check(t, os.WriteFile(v.config, append(before, "[core.seal.escrow]\nrecipients = ['"+plugin.EncodeRecipient(name, []byte(id.String()))+"']\n"...), 0o600))
	v.prepare(t, "passphrase escrow")
	// The passphrase is lost.
	check(t, os.WriteFile(filepath.Join(filepath.Dir(v.config), "passphrase"), []byte("another\n"), 0o600))
	holder := filepath.Join(bin, "holder.txt")
	check(t, os.WriteFile(holder, []byte("# of the token\n"+plugin.EncodeIdentity(name, []byte(id.String()))+"\n"), 0o600))
	steps := []struct {
		args []string
		ok   bool
		want string
	}{
		{[]string{"rotate"}, false, "passphrase: wrong passphrase"},
		{[]string{"status", "--identity", holder}, true, "1 recipient"},
		{[]string{"rotate", "--identity", holder}, true, "kmsctl: age-plugin-tktoken: touch the token"},
		{[]string{"status"}, true, "opens here"},
	}
	for _, step := range steps {
		cmd, out := v.verb(t, step.args...)
		err := cmd.Run()
		if (err == nil) != step.ok || !strings.Contains(out.String(), step.want) {
			t.Errorf("kmsctl seal %q = %v, %s, want %q", step.args, err, out, step.want)
		}
		if strings.Contains(out.String(), "AGE-PLUGIN") {
			t.Errorf("kmsctl seal %q shows the identity: %s", step.args, out)
		}
	}
	// A plugin that is not there is a reason, by its name.
	check(t, os.Remove(filepath.Join(bin, pluginPrefix+name)))
	check(t, os.WriteFile(filepath.Join(filepath.Dir(v.config), "passphrase"), []byte("a third\n"), 0o600))
	cmd, out := v.verb(t, "rotate", "--identity", holder)
	if err := cmd.Run(); err == nil || !strings.Contains(out.String(), pluginPrefix+name) {
		t.Errorf("kmsctl seal rotate without the plugin = %v, %s, want it to be named", err, out)
	}
}
