// A worker thread's entry: jobs in, results out, one at a time, in order. A thrown error goes back as its coded body.
// workerData says which half this is: { role: 'compress' } at the source, { role: 'apply', regions, proofKey } at the
// target. It is never ended from outside while it is at work (pool.ts says why): it is told to end, begins no job any
// more, and ends itself.
import { parentPort, workerData } from 'node:worker_threads'
import { toGodwitError } from '../../wire/errors.ts'
import type { CompressJob } from './compress.ts'
import type { ApplyJob } from './memory.ts'
import {
  createApplyPerformer,
  createCompressPerformer,
  loadPageHasher,
  type Performer,
  type TaskAnswer,
  type WorkerStart,
  type WorkerTask,
} from './perform.ts'
import { begin, done } from './turn.ts'

const { role, turn } = workerData as WorkerStart
const perform = (
  role.role === 'compress'
    ? await createCompressPerformer()
    : await createApplyPerformer(role.regions, role.proofKey && (await loadPageHasher(role.proofKey)))
) as Performer<CompressJob | ApplyJob, unknown>
const port = parentPort
if (!port) throw new Error('worker.ts runs in a worker thread')

port.on('message', (task: WorkerTask) => {
  if (task === 'end') return port.close()
  if (!begin(turn)) return
  try {
    port.postMessage(...answerTo(task))
  } finally {
    done(turn)
  }
})

function answerTo({ id, job }: Exclude<WorkerTask, 'end'>): [TaskAnswer, ArrayBuffer[]] {
  try {
    const { result, transfer } = perform(job)
    return [{ id, result }, transfer]
  } catch (error) {
    return [{ id, error: toGodwitError(error).toJSON() }, []]
  }
}
