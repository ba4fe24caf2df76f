// The Merkle root (chunk-tree.ts) of an open file. Enters: a descriptor, its size. Leaves: the root, and how far it is.
// Always holds: large files are read in a thread of their own, which looks after each chunk whether it is to stop: it
// is asked and ends by itself, never ended from outside.
import { Worker } from 'node:worker_threads'
import { fromBody, GodwitError } from '../../wire/errors.ts'
import { type HashAnswer, type HashTask, hashChunks, type OnLeaves, type OpenFile } from './hash-chunks.ts'

/** Below this no thread is worth its start. */
const INLINE_BYTES_MAX = 2 * 1024 * 1024

type HashFileOptions = {
  signal?: AbortSignal | undefined
  onProgress?: ((doneBytes: number) => void) | undefined
  onLeaves?: OnLeaves | undefined
}

/**
 * The root, in hex. PREFLIGHT_FILE_CHANGED when the file ends early; the signal's reason when it is aborted, within a
 * chunk's time.
 */
export async function hashFile(file: OpenFile, { signal, onProgress = () => {}, onLeaves }: HashFileOptions = {}): Promise<string> {
  signal?.throwIfAborted()
  if (file.bytes <= INLINE_BYTES_MAX) {
    const root = await hashChunks(file, { isStopped: () => signal?.aborted === true, onProgress, onLeaves })
    signal?.throwIfAborted()
    return root!
  }
  const stop = new SharedArrayBuffer(4)
  const ask = () => void Atomics.store(new Int32Array(stop), 0, 1)
  const workerData: HashTask = { ...file, stop, wantsLeaves: onLeaves !== undefined }
  const worker = new Worker(new URL('./hash-worker.ts', import.meta.url), { workerData })
  signal?.addEventListener('abort', ask, { once: true })
  try {
    return await answerOf(worker, onProgress, onLeaves)
  } catch (error) {
    throw signal?.aborted ? signal.reason : error
  } finally {
    signal?.removeEventListener('abort', ask)
  }
}

/** Settles when the thread has ended: then nobody reads the descriptor any more. */
function answerOf(worker: Worker, onProgress: (doneBytes: number) => void, onLeaves: OnLeaves | undefined): Promise<string> {
  let last: HashAnswer | undefined
  worker.on('message', (answer: HashAnswer) => {
    if ('doneBytes' in answer) onProgress(answer.doneBytes)
    else if ('leaves' in answer) onLeaves?.(answer.first, answer.leaves)
    else last = answer
  })
  return new Promise((resolve, reject) => {
    worker.once('error', error => reject(new GodwitError('INTERNAL', 'the thread that hashes a file failed', { cause: error })))
    worker.once('exit', () => {
      if (last && 'root' in last) resolve(last.root)
      else reject(last && 'error' in last ? fromBody(last.error) : new GodwitError('INTERNAL', 'the thread that hashes a file ended early'))
    })
  })
}
