// An agent to be killed in tests: opens the registry of the folders in its arguments, starts the VM named in the third,
// says READY and waits.
import { openRegistry } from '../../../edge-node/registry/registry.ts'

const [stateDir = '', imagesDir = '', name = ''] = process.argv.slice(2)
const registry = await openRegistry({ stateDir, imagesDir })
await registry.start(name)
console.log('READY')
setInterval(() => {}, 1000)
