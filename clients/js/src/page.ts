/**
 * What the client uses of a page. It is the page's global object; other runtimes lack parts of it, and
 * tests have objects of their own.
 */
export interface Page {
  readonly document?: Pick<Document, 'visibilityState'>
  readonly location?: Pick<Location, 'href'>
  readonly navigator?: { readonly locks?: LockManager }
  readonly sessionStorage?: Pick<Storage, 'getItem' | 'setItem'>
  readonly BroadcastChannel?: typeof BroadcastChannel
  addEventListener?(type: string, listener: (event: Event) => void, options: AddEventListenerOptions): void
}

export function isHidden(page: Page): boolean {
  return page.document?.visibilityState === 'hidden'
}

/** For what throws if the user, or the place of the page, doesn't allow it. */
export function ifAllowed<T>(use: () => T): T | undefined {
  try {
    return use()
  } catch {
    return undefined
  }
}
