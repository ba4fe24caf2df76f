// Writes worked-example.json anew. A difference to the file that is checked in is a change of the protocol: raise its
// version.
import { writeFileSync } from 'node:fs'
import { loadSodium } from '../../crypto/sodium.ts'
import { workedExample } from '../support/crypto-example.ts'

await loadSodium()
writeFileSync(new URL('worked-example.json', import.meta.url), `${JSON.stringify(workedExample(), null, 2)}\n`)
