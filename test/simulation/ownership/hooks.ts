// Gives production code a simulated world without a line of it knowing: modules that touch the outside are exchanged
// while they are loaded.
// Enters: the list below. Leaves: a process in which edge-node and gateway run on virtual hosts. Must be called before
// any of them is imported.
//
// Always holds: what decides about a VM is the production file itself (states, source, target, hand-over, journal,
// recover, the registry, migrations, runs and asking, link, the whole gateway, the relay); exchanged are QEMU, the
// disk, the network below streams, and what costs time and decides nothing (signatures, AEAD, page compression). A
// mutant (`?mutant=NAME` on its first import, handed on to all it imports) is production code whose text was changed
// while it was loaded; a change that does not apply exactly once is an error, so a mutant can never silently be the
// original.
import { readFileSync } from 'node:fs'
import { registerHooks } from 'node:module'
import { fileURLToPath } from 'node:url'

/** A change of one file's text: `find` must occur exactly once. */
export type Patch = { file: string; find: string; replace: string }

const ROOT = new URL('../../../', import.meta.url).href
const FAKES = new URL('./fakes/', import.meta.url).href

/** Project file: what stands in for it. */
const FILES: Record<string, string> = {
  'edge-node/vm/machine.ts': 'machine.ts',
  'edge-node/vm/runtime-folder.ts': 'runtime-folder.ts',
  'edge-node/vm/process.ts': 'process.ts',
  'edge-node/vm/files.ts': 'files.ts',
  'edge-node/disks/digests.ts': 'digests.ts',
  'edge-node/disks/images.ts': 'images.ts',
  'edge-node/disks/local.ts': 'local-disks.ts',
  'edge-node/disks/seed.ts': 'local-disks.ts',
  'edge-node/vm/held-files.ts': 'held-files.ts',
  'edge-node/vm/host.ts': 'host.ts',
  'edge-node/qmp/socket.ts': 'net.ts',
  'edge-node/vm/qemu.ts': 'qemu-binary.ts',
  'identity/load.ts': 'identity.ts',
  'identity/trust.ts': 'trust.ts',
  'identity/renewal.ts': 'renewal.ts',
  'transport/select.ts': 'select.ts',
  'edge-node/link/authenticate.ts': 'authenticate.ts',
  'edge-node/stream/parse.ts': 'parse.ts',
  'edge-node/pages/pipeline.ts': 'pipeline.ts',
  'edge-node/pages/apply.ts': 'apply.ts',
  'edge-node/services.ts': 'services.ts',
  'gateway/sites/authenticate.ts': 'authenticate.ts',
  'gateway/fronts/mqtt/start.ts': 'nothing.ts',
  'gateway/policy/policy-loop.ts': 'nothing.ts',
  'gateway/services/services.ts': 'nothing.ts',
  'gateway/fronts/mec021/server.ts': 'nothing.ts',
  'crypto/channel/handshake.ts': 'handshake.ts',
  'crypto/channel/record.ts': 'record.ts',
  'crypto/channel/cutter.ts': 'record.ts',
  'crypto/channel/page-hash.ts': 'record.ts',
  'ops/store.ts': 'store.ts',
  'ops/http.ts': 'nothing.ts',
  'ops/metrics.ts': 'nothing.ts',
}

/** Node's modules, for production code only. */
const BUILTINS: Record<string, string> = {
  'node:fs/promises': 'fs-promises.ts',
  'node:fs': 'fs.ts',
  'node:net': 'net.ts',
  'node:crypto': 'random-bytes.ts',
}

/** Where these builtins are exchanged: the places whose answers a run depends on. */
const OUTSIDE = ['edge-node/', 'gateway/']
/** Loaded anew for each mutant. */
const MUTABLE = [
  'edge-node/',
  'gateway/',
  'test/simulation/ownership/production.ts',
  'test/simulation/ownership/fakes/migrations.ts',
  'test/simulation/ownership/fakes/sessions.ts',
]

const mutants = new Map<string, Patch[]>()
let registered = false

/** Makes `production.ts?mutant=name` load these changes. */
export function defineMutant(name: string, patches: Patch[]): void {
  mutants.set(name, patches)
}

const pathOf = (url: string): string => (url.startsWith(ROOT) ? url.slice(ROOT.length).split('?')[0]! : '')
const mutantOf = (url: string | undefined): string | undefined => url?.match(/\?mutant=([a-z0-9-]+)/)?.[1]

function resolveFake(specifier: string, parent: string, resolved: () => string): string | undefined {
  const from = pathOf(parent)
  const outside = OUTSIDE.some(folder => from.startsWith(folder))
  if (specifier.startsWith('node:')) return outside && BUILTINS[specifier] ? FAKES + BUILTINS[specifier] : undefined
  if (!specifier.startsWith('.')) return undefined
  const to = pathOf(resolved())
  if (to === 'edge-node/migrations.ts' && from === 'edge-node/agent.ts') return `${FAKES}migrations.ts`
  if (to === 'gateway/relay/sessions.ts' && from === 'gateway/gateway.ts') return `${FAKES}sessions.ts`
  // The journal's signatures only: certificates keep Ed25519.
  if (to === 'crypto/signature.ts') return from === 'crypto/identity.ts' ? `${FAKES}signature.ts` : undefined
  return FILES[to] && !from.startsWith('test/') ? FAKES + FILES[to] : undefined
}

function mutate(path: string, name: string): string {
  let text = readFileSync(fileURLToPath(ROOT + path), 'utf8')
  for (const { file, find, replace } of mutants.get(name) ?? []) {
    if (file !== path) continue
    const parts = text.split(find)
    if (parts.length !== 2) throw new Error(`mutant ${name}: '${find}' is ${parts.length - 1} times in ${path}`)
    text = parts.join(replace)
  }
  return text
}

/** Idempotent. */
export function installHooks(): void {
  if (registered) return
  registered = true
  registerHooks({
    resolve(specifier, context, next) {
      const parent = context.parentURL ?? ''
      const found = resolveFake(specifier, parent, () => next(specifier, context).url)
      const result = found === undefined ? next(specifier, context) : { url: found, shortCircuit: true }
      const mutant = mutantOf(parent)
      if (mutant === undefined || mutantOf(result.url) !== undefined) return result
      return MUTABLE.some(prefix => pathOf(result.url).startsWith(prefix)) ? { ...result, url: `${result.url}?mutant=${mutant}` } : result
    },
    load(url, context, next) {
      const name = mutantOf(url)
      const changed = name !== undefined && mutants.get(name)?.some(({ file }) => file === pathOf(url))
      if (!changed) return next(url, context)
      return { format: 'module-typescript', source: mutate(pathOf(url), name), shortCircuit: true }
    },
  })
}
