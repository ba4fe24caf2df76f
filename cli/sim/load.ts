// Reads the files of a simulation. Enters: a scenario's path, and the folder of traces. Leaves: the checked scenario
// and parsed traces.
import { readText } from '../../ops/files.ts'
import { needsTraces, parseScenario, type Scenario } from '../../sim-network/mobility/scenario.ts'
import type { DriveTrace } from '../../sim-network/mobility/trace.ts'
import { GodwitError } from '../../wire/errors.ts'
import { chooseTraces, readTraces } from './traces.ts'

type LoadOptions = { folder?: string | undefined; only?: string | undefined; seed?: number | undefined }

/** USAGE if the scenario replays drives and their folder is not given. */
export async function loadSimulation(
  path: string,
  { folder, only, seed }: LoadOptions,
): Promise<{ scenario: Scenario; traces: DriveTrace[]; played: DriveTrace[] }> {
  const read = parseScenario(await readText(path), path)
  const scenario = seed === undefined ? read : { ...read, seed }
  if (!needsTraces(scenario)) return { scenario, traces: [], played: [] }
  if (!folder) {
    throw new GodwitError('USAGE', `${path} replays recorded drives, but their folder is not given`, {
      hint: 'give it with --traces or GODWIT_TRACES; docs/operate/policy.md describes the files',
    })
  }
  const traces = await readTraces(folder)
  return { scenario, traces, played: only === undefined ? traces : chooseTraces(traces, only) }
}
