package kms

// CheckName is what decides on one alternative name.
var CheckName = checkName
