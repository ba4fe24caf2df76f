// Reads recorded drives from a folder of the user; the project contains none. Enters: a folder. Leaves: parsed traces,
// sorted by name.
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { readText } from '../../ops/files.ts'
import { type DriveTrace, parseDriveTrace } from '../../sim-network/mobility/trace.ts'
import { GodwitError } from '../../wire/errors.ts'

const FILES_MAX = 500

/** All *.csv of a folder. CONFIG_UNREADABLE if it cannot be read or contains none. */
export async function readTraces(folder: string): Promise<DriveTrace[]> {
  const names = await readdir(folder).catch((cause: unknown) => {
    throw new GodwitError('CONFIG_UNREADABLE', `${folder}: cannot be read`, { cause })
  })
  const files = names.filter(name => name.endsWith('.csv')).sort()
  if (files.length === 0) throw new GodwitError('CONFIG_UNREADABLE', `${folder}: contains no *.csv`)
  if (files.length > FILES_MAX) throw new GodwitError('LIMIT_EXCEEDED', `${folder}: contains more than ${FILES_MAX} traces`)
  return await Promise.all(files.map(async name => parseDriveTrace(name, await readText(join(folder, name)))))
}

/** Those whose names match one of the patterns (comma-separated; `*` stands for anything). USAGE if none matches. */
export function chooseTraces(traces: readonly DriveTrace[], patterns: string): DriveTrace[] {
  const tests = patterns.split(',').map(pattern => {
    const escaped = pattern.trim().replace(/[.+?^${}()|[\]\\]/g, '\\$&')
    return new RegExp(`^${escaped.replaceAll('*', '.*')}$`)
  })
  const chosen = traces.filter(({ name }) => tests.some(pattern => pattern.test(name)))
  if (chosen.length === 0) throw new GodwitError('USAGE', `--only '${patterns}': matches no trace`)
  return chosen
}
