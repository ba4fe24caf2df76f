// Something slow that the tests of one file share: made by the first that asks, disposed by the file's last test. (A
// hook would hide its failures: see suite.ts.)
type Shared<T> = { (): Promise<T>; dispose(): Promise<void> }

export function shared<T extends AsyncDisposable>(make: () => Promise<T>): Shared<T> {
  let made: Promise<T> | undefined
  const get = () => {
    made ??= make()
    return made
  }
  const dispose = async () => {
    const last = made
    made = undefined
    // What could not be made has said so in the tests that asked for it.
    await (await last?.catch(() => undefined))?.[Symbol.asyncDispose]()
  }
  return Object.assign(get, { dispose })
}
