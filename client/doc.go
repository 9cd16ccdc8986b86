// Package client is the other side of a KMS, for workloads in a trust domain:
// it proves what the workload is, checks what the KMS is, and gets keys and
// certificates. It speaks to this KMS and to existing dstack KMSs.
//
// [Dial] makes a certificate with Evidence from an [Attester], connects, and
// appraises the KMS: it is identified by its root certificate (Config.CACert),
// by its Evidence and a [Policy], or by both. Then [Client.AppKey] gets the keys
// of the application, [Client.SignCert] a certificate of the application's CA,
// [Client.EnvPublicKey] the key to which its environment is encrypted, and
// [Client.Meta] what the KMS says of itself.
//
// What the Evidence says is who the application is: nobody names an app id to
// get its keys. A KMS that knows the application and does not allow it is a
// [*DeniedError].
package client
