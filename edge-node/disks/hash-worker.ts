// The thread that hashes one file (hash-file.ts): workerData says which; messages say how far it is, and at the end the
// root. It ends by itself.
import { parentPort, workerData } from 'node:worker_threads'
import { toGodwitError } from '../../wire/errors.ts'
import { type HashAnswer, type HashTask, hashChunks, type OnLeaves } from './hash-chunks.ts'

const task = workerData as HashTask
const stop = new Int32Array(task.stop)
const say = (answer: HashAnswer): void => parentPort?.postMessage(answer)

try {
  const isStopped = () => Atomics.load(stop, 0) !== 0
  const onLeaves: OnLeaves = (first, leaves) => say({ first, leaves })
  const steps = { isStopped, onProgress: (doneBytes: number) => say({ doneBytes }) }
  const root = await hashChunks(task, { ...steps, onLeaves: task.wantsLeaves ? onLeaves : undefined })
  say(root === undefined ? { stopped: true } : { root })
} catch (error) {
  say({ error: toGodwitError(error, 'CONFIG_UNREADABLE').toJSON() })
}
