// Memory and descriptors of the processes of a soak run, sampled at rest. Enters: pids. Leaves: what has grown beyond
// its bound.
// Always holds: only samples of one process are compared, after its first migration, with the same number of VMs at its
// site: each VM has descriptors of its own, and an agent that was restarted begins anew.

import { readdir } from 'node:fs/promises'
import { MIB } from '../../wire/units.ts'
import { residentBytes } from '../support/lab-processes.ts'

/** Sockets to a broker, a client of the API: what comes and goes by itself. */
const DESCRIPTORS_SLACK = 8
/** V8's heap grows with what it was once asked for (docs/internals/architecture.md, "Bounds on memory"). */
const MEMORY_SLACK_BYTES = 160 * MIB
const SETTLING_SAMPLES = 3

type Sample = { step: number; descriptors: number; bytes: number }

export type Resources = {
  sample(step: number, processes: { name: string; pid: number; vms: number }[]): Promise<void>
  /** One line for each process whose descriptors or memory have grown. */
  grown(): string[]
  /** For the summary: the highest values seen, by name. */
  peaks(): string[]
}

export function createResources(): Resources {
  const series = new Map<string, Sample[]>()
  return {
    async sample(step, processes) {
      for (const { name, pid, vms } of processes) {
        const [descriptors, bytes] = [(await readdir(`/proc/${pid}/fd`)).length, await residentBytes(pid)]
        const key = `${name} (pid ${pid}, ${vms} VMs)`
        series.set(key, [...(series.get(key) ?? []), { step, descriptors, bytes }])
      }
    },
    grown: () =>
      [...series].flatMap(([key, samples]) => {
        const early = samples.slice(0, SETTLING_SAMPLES)
        const last = samples.at(-1)!
        if (samples.length <= SETTLING_SAMPLES) return []
        const base = { descriptors: Math.max(...early.map(each => each.descriptors)), bytes: Math.max(...early.map(each => each.bytes)) }
        return [
          ...(last.descriptors > base.descriptors + DESCRIPTORS_SLACK
            ? [`${key}: ${base.descriptors} -> ${last.descriptors} descriptors`]
            : []),
          ...(last.bytes > base.bytes + MEMORY_SLACK_BYTES ? [`${key}: ${mib(base.bytes)} -> ${mib(last.bytes)} MiB`] : []),
        ]
      }),
    peaks: () =>
      [...Map.groupBy(series, ([key]) => key.split(' ')[0]!)].map(([name, entries]) => {
        const samples = entries.flatMap(([, list]) => list)
        return `${name}: at most ${Math.max(...samples.map(s => s.descriptors))} descriptors, ${mib(Math.max(...samples.map(s => s.bytes)))} MiB`
      }),
  }
}

const mib = (bytes: number) => Math.round(bytes / MIB)
