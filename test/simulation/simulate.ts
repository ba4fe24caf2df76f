// Runs the ownership simulation in a process of its own and gives its result. Enters: arguments. Leaves: the JSON that it prints, also when runs failed.
import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'

const MAIN = fileURLToPath(new URL('./ownership/main.ts', import.meta.url))

export async function simulate<T>(args: string[]): Promise<T> {
  const child = spawn(process.execPath, [MAIN, ...args, '--json'], { stdio: ['ignore', 'pipe', 'inherit'] })
  let out = ''
  child.stdout.setEncoding('utf8').on('data', text => {
    out += text
  })
  await new Promise(resolve => child.once('close', resolve))
  return JSON.parse(out) as T
}
