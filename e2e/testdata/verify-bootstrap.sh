#!/bin/bash
echo "Checking KMS bootstrap..."

CERTS_DIR="/etc/kms/certs"

# Count files
FILE_COUNT=$(ls -1 "$CERTS_DIR" | wc -l)
if [ "$FILE_COUNT" -eq 8 ]; then
    echo "✓ All 8 files generated"
else
    echo "✗ Expected 8 files, found $FILE_COUNT"
    exit 1
fi

# Check Root CA
if openssl x509 -in "$CERTS_DIR/root-ca.crt" -noout -subject | grep -q "Dstack KMS CA"; then
    echo "✓ Root CA certificate valid"
else
    echo "✗ Root CA certificate invalid"
    exit 1
fi

# Check RPC certificate
if openssl x509 -in "$CERTS_DIR/rpc.crt" -noout 2>/dev/null; then
    echo "✓ RPC certificate valid"
else
    echo "✗ RPC certificate invalid"
    exit 1
fi

# Check certificate chain
if openssl verify -CAfile "$CERTS_DIR/root-ca.crt" "$CERTS_DIR/rpc.crt" 2>&1 | grep -q "OK"; then
    echo "✓ Certificate chain valid"
else
    echo "✗ Certificate chain invalid"
    exit 1
fi

# Check K256 key
if [ -f "$CERTS_DIR/root-k256.key" ] && [ $(stat -f%z "$CERTS_DIR/root-k256.key" 2>/dev/null || stat -c%s "$CERTS_DIR/root-k256.key") -eq 32 ]; then
    echo "✓ K256 key valid (32 bytes)"
else
    echo "✗ K256 key invalid"
    exit 1
fi

# Check bootstrap info
if [ -f "$CERTS_DIR/bootstrap-info.json" ] && jq empty "$CERTS_DIR/bootstrap-info.json" 2>/dev/null; then
    echo "✓ bootstrap-info.json valid"
else
    echo "✗ bootstrap-info.json invalid"
    exit 1
fi

echo ""
echo "KMS bootstrap verified successfully!"
