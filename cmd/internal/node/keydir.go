package node

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"go.uber.org/zap"

	"teekms/cmd/internal/sealing"
	"teekms/internal/keys/keystore"
)

// openKeys opens the key directory with the seals that are configured. path is
// the configuration file, for what is to be done about a refusal.
func (n *Node) openKeys(ctx context.Context, path string) error {
	c := n.Config.Core
	sealing.Warn(n.Log, c.Seal)
	set, err := sealing.NewSet(c, sealing.Terminal)
	if err != nil {
		return err
	}
	open := keystore.Config{Dir: c.CertDir, Domain: c.Onboard.AutoBootstrapDomain, Now: time.Now, Log: n.Log}
	if set != nil {
		open.Sealer, n.seals = set, set
	}
	n.Keys, err = keystore.Open(ctx, open)
	n.giveBack()
	switch {
	case err == nil:
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return fmt.Errorf("opening key directory %s: interrupted by a signal", c.CertDir)
	case errors.Is(err, keystore.ErrNotSealed):
		return fmt.Errorf("%w --config %s", err, path)
	case errors.Is(err, keystore.ErrSealed):
		return fmt.Errorf("%w: %s", err, sealing.Described(n.privateFiles(ctx)))
	default:
		return err
	}
	if set == nil || !n.Keys.Complete() {
		return nil
	}
	files := n.privateFiles(ctx)
	n.Log.Info("the key directory was unsealed", zap.String("dir", c.CertDir), zap.String("seals", sealing.Described(files)))
	sealing.WarnOf(n.Log, sealing.Differences(c, files))
	return nil
}

// privateFiles are for telling what they are sealed to; none where they cannot be
// read.
func (n *Node) privateFiles(ctx context.Context) map[string][]byte {
	files, err := keystore.ReadPrivate(ctx, n.Config.Core.CertDir, nil)
	if err != nil {
		n.Log.Warn("reading what the key files are sealed to", zap.NamedError("err", err))
	}
	return files
}

// rehearse seals something worthless before there are keys to seal: whoever is to
// be asked for a passphrase is asked now, and not while a caller waits for the
// keys.
func (n *Node) rehearse(ctx context.Context) error {
	if n.seals == nil {
		return nil
	}
	err := sealing.Rehearse(ctx, n.seals)
	n.giveBack()
	if err != nil && ctx.Err() != nil {
		return errors.New("trying the seals of core.seal: interrupted by a signal")
	}
	return err
}

// giveBack returns to the system what stretching a passphrase took, hundreds of
// megabytes that are not needed again.
func (n *Node) giveBack() {
	if n.Config.Core.Seal.Passphrase.Enabled {
		debug.FreeOSMemory()
	}
}
