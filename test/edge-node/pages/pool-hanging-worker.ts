// A page worker that never ends its job, as a thread that waits in the kernel for ever: it stands for what cannot be
// provoked here.
import { parentPort, workerData } from 'node:worker_threads'
import type { WorkerStart } from '../../../edge-node/pages/perform.ts'
import { begin } from '../../../edge-node/pages/turn.ts'

const { turn } = workerData as WorkerStart
parentPort?.on('message', () => {
  begin(turn)
  new BroadcastChannel('hangs').postMessage('now')
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)
})
