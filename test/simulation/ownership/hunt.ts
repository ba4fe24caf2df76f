// Sets the simulation on the mutants. Enters: mutants, seeds. Leaves: for each the first seed that catches it, and the
// invariant that broke.
import type { Production } from './agents.ts'
import { nodeHost } from './fakes/node-host.ts'
import { HANGS, UNWATCHED } from './hangs.ts'
import { assertChanged, defineMutant } from './hooks.ts'
import { MUTANTS, type Mutant } from './mutants.ts'
import { runSeed } from './run.ts'

type Caught = { mutant: string; says: string; seed: number | undefined; invariant?: string; message?: string; seedsRun: number }

export async function loadMutant({ name, patches, host }: Mutant): Promise<Production> {
  defineMutant(name, patches)
  const code = (await import(`./production.ts?mutant=${name}`)) as Production
  assertChanged(name)
  return { ...code, ...(host && { nodeHost: host(nodeHost) }) }
}

/** Seeds from `first` on, until one catches it. */
export async function huntOne(mutant: Mutant, first: number, seedsMax: number): Promise<Caught> {
  const production = await loadMutant(mutant)
  // The seed that caught it once, first: it mostly does so still.
  for (const seed of [mutant.seed, ...Array.from({ length: seedsMax }, (_, i) => first + i)]) {
    const { violation } = await runSeed(production, seed, { focus: mutant.focus })
    if (violation) {
      const { invariant, message } = violation
      return { mutant: mutant.name, says: mutant.says, seed, invariant, message, seedsRun: Math.max(1, seed - first + 1) }
    }
  }
  return { mutant: mutant.name, says: mutant.says, seed: undefined, seedsRun: seedsMax }
}

export const mutantNamed = (name: string): Mutant | undefined => [...MUTANTS, ...HANGS, ...UNWATCHED].find(mutant => mutant.name === name)
