// Compiles Authority.sol to Authority.json. See README.md.
const crypto = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');
const solc = require('solc');

const file = (name) => path.join(__dirname, name);
const source = fs.readFileSync(file('Authority.sol'), 'utf8');
const output = JSON.parse(solc.compile(JSON.stringify({
  language: 'Solidity',
  sources: { 'Authority.sol': { content: source } },
  settings: {
    evmVersion: 'shanghai',
    optimizer: { enabled: true, runs: 200 },
    viaIR: true,
    metadata: { bytecodeHash: 'none' },
    outputSelection: { '*': { '*': ['abi', 'evm.bytecode.object'] } },
  },
})));
for (const e of output.errors ?? []) console.error(e.formattedMessage);
if ((output.errors ?? []).some((e) => e.severity === 'error')) process.exit(1);
const contract = output.contracts['Authority.sol'].Authority;
fs.writeFileSync(file('Authority.json'), JSON.stringify({
  compiler: solc.version(),
  sourceSha256: crypto.createHash('sha256').update(source).digest('hex'),
  abi: contract.abi,
  bytecode: '0x' + contract.evm.bytecode.object,
}, null, 1) + '\n');
