// Changes production code while it is loaded: wrong versions for the mutants, and signatures that cost nothing.
// Enters: changes of texts. Leaves: a process whose imports give the changed files. Must be called before any of them
// is imported.
//
// Always holds: production gets its host, store, memory path, ids and engine as parameters (fakes/node-host.ts,
// agents.ts); one file is exchanged by path, crypto/signature.ts: Ed25519 is a third of the time of a run and decides
// nothing here, and production has no parameter by which its signatures could be exchanged. A mutant (`?mutant=NAME` on
// its first import, handed on to all it imports) is production code whose text was changed; a change that does not
// apply exactly once, or whose file is not loaded, is an error, so a mutant can never silently be the original.
import { readFileSync } from 'node:fs'
import { registerHooks } from 'node:module'
import { fileURLToPath } from 'node:url'

/** A change of one file's text: `find` must occur exactly once. */
export type Patch = { file: string; find: string; replace: string }

const ROOT = new URL('../../../', import.meta.url).href
const SIGNATURES = new URL('./fakes/signature.ts', import.meta.url).href

/** Loaded anew for each mutant. */
const MUTABLE = ['edge-node/', 'gateway/', 'test/simulation/ownership/production.ts']

const mutants = new Map<string, Patch[]>()
/** By mutant: the files that were changed as they were loaded. */
const changed = new Map<string, Set<string>>()
let registered = false

/** Makes `production.ts?mutant=name` load these changes. */
export function defineMutant(name: string, patches: Patch[]): void {
  mutants.set(name, patches)
}

/** After its import: every change has found its file. */
export function assertChanged(name: string): void {
  const missed = mutants.get(name)?.find(({ file }) => !changed.get(name)?.has(file))
  if (missed) throw new Error(`mutant ${name}: ${missed.file} is not loaded`)
}

const pathOf = (url: string): string => (url.startsWith(ROOT) ? url.slice(ROOT.length).split('?')[0]! : '')
const mutantOf = (url: string | undefined): string | undefined => url?.match(/\?mutant=([a-z0-9-]+)/)?.[1]

/** Everybody's signatures, those of certificates too. */
const isSignatures = (specifier: string, resolved: () => string) =>
  specifier.endsWith('/signature.ts') && pathOf(resolved()) === 'crypto/signature.ts'

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
      const resolve = () => next(specifier, context)
      const result = isSignatures(specifier, () => resolve().url) ? { url: SIGNATURES, shortCircuit: true } : resolve()
      const mutant = mutantOf(parent)
      if (mutant === undefined || mutantOf(result.url) !== undefined) return result
      return MUTABLE.some(prefix => pathOf(result.url).startsWith(prefix)) ? { ...result, url: `${result.url}?mutant=${mutant}` } : result
    },
    load(url, context, next) {
      const name = mutantOf(url)
      const path = pathOf(url)
      if (name === undefined || !mutants.get(name)?.some(({ file }) => file === path)) return next(url, context)
      changed.set(name, (changed.get(name) ?? new Set()).add(path))
      return { format: 'module-typescript', source: mutate(path, name), shortCircuit: true }
    },
  })
}
