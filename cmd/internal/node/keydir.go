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
	"teekms/internal/keys/seal"
)

// openKeys opens the key directory with the seals that are configured. path is
// the configuration file, for what is to be done about a refusal.
func (n *Node) openKeys(ctx context.Context, path string) error {
	c := n.Config.Core
	sealing.Warn(n.Log, c.Seal)
	opener := ""
	set, err := sealing.NewSet(c, sealing.Terminal, func(kind seal.Kind, err error) {
		if err == nil {
			opener = string(kind)
			return
		}
		n.Log.Warn("a seal does not open the key directory any more: where that is to stay so, run kmsctl seal rotate",
			zap.String("seal", string(kind)), zap.NamedError("err", err))
	})
	if err != nil {
		return err
	}
	open := keystore.Config{Dir: c.CertDir, Domain: c.Onboard.AutoBootstrapDomain, Now: time.Now, Log: n.Log}
	var before map[string][]byte
	if set != nil {
		open.Sealer, n.seals = set, set
		// What cannot be read is told of by Open.
		before, _ = keystore.ReadPrivate(ctx, c.CertDir, nil)
	}
	n.Keys, err = keystore.Open(ctx, open)
	n.giveBack()
	if err != nil {
		return n.refusal(ctx, path, err)
	}
	if set == nil || !n.Keys.Complete() {
		return nil
	}
	files := n.privateFiles(ctx)
	n.Log.Info("the key directory was opened", zap.String("dir", c.CertDir), zap.String("by", opener),
		zap.String("seals", sealing.Described(files)))
	n.tellResealed(before, files)
	sealing.WarnOf(n.Log, sealing.Differences(c, files))
	return nil
}

// refusal says what is to be done about a key directory that does not open.
func (n *Node) refusal(ctx context.Context, path string, err error) error {
	dir := n.Config.Core.CertDir
	_, unopened := errors.AsType[*seal.OpenError](err)
	switch {
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return fmt.Errorf("opening key directory %s: interrupted by a signal", dir)
	case errors.Is(err, keystore.ErrNotSealed):
		return fmt.Errorf("%w --config %s", err, path)
	case errors.Is(err, keystore.ErrSealed):
		return fmt.Errorf("%w: %s", err, sealing.Described(n.privateFiles(ctx)))
	case unopened:
		return fmt.Errorf("%w; kmsctl seal status --config %s tells what would open it", err, path)
	}
	return err
}

// tellResealed says that files that were missing made the others be sealed anew,
// to what is configured and to nothing that they were sealed to besides.
func (n *Node) tellResealed(before, after map[string][]byte) {
	was, sealed := sealing.Sealing(before)
	if is, _ := sealing.Sealing(after); !sealed || was == is {
		return
	}
	n.Log.Warn("the private files were sealed anew to what core.seal configures, since files were missing",
		zap.String("before", sealing.Described(before)), zap.String("now", sealing.Described(after)))
	for _, d := range sealing.Differences(n.Config.Core, before) {
		n.Log.Warn("the private files were sealed otherwise before", zap.String("seal", string(d.Kind)),
			zap.String("before", d.Files), zap.String("now", d.Configured))
	}
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
	for _, text := range sealing.Unmeasured(ctx, n.Config.Core.Seal) {
		n.Log.Warn(text)
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
