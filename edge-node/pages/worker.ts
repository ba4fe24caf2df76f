// A worker thread's entry: jobs in, results out, one at a time, in order. A thrown error goes back as its coded body.
// workerData says which half this is: { role: 'compress' } at the source, { role: 'apply', regions } at the target.
import { parentPort, workerData } from 'node:worker_threads'
import { toGodwitError } from '../../wire/errors.ts'
import type { CompressJob } from './compress.ts'
import type { ApplyJob } from './memory.ts'
import { type Answer, createApplyPerformer, createCompressPerformer, type Performer, type Task, type WorkerRole } from './perform.ts'

const role = workerData as WorkerRole
const perform = (role.role === 'compress' ? await createCompressPerformer() : await createApplyPerformer(role.regions)) as Performer<
  CompressJob | ApplyJob,
  unknown
>
const port = parentPort
if (!port) throw new Error('worker.ts runs in a worker thread')

port.on('message', ({ id, job }: Task) => {
  try {
    const { result, transfer } = perform(job)
    port.postMessage({ id, result } satisfies Answer, transfer)
  } catch (error) {
    port.postMessage({ id, error: toGodwitError(error).toJSON() } satisfies Answer)
  }
})
