package main

import (
	"time"

	"go.uber.org/zap"

	"teekms/internal/authz"
	"teekms/internal/authz/onchain"
	"teekms/internal/config"
)

// newEthereum makes the authority that is a contract.
func newEthereum(c config.AuthEthereumSection, log *zap.Logger) (authz.Authorizer, error) {
	return onchain.New(onchain.Config{
		URL: c.RPCURL, Contract: c.KMSContractAddress, ChainID: uint64(c.ChainID), Finality: onchain.Finality(c.Finality),
		Confirmations: uint64(c.Confirmations), MaxBlockAge: c.MaxBlockAge, Timeout: c.Timeout, CAFile: c.CAFile, Log: log, Now: time.Now,
	})
}
